"""Compare the batched logistic fit with a general optimiser and with statsmodels."""

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm  # type: ignore[import-untyped]
from scipy.optimize import minimize
from scipy.special import expit

from selfcontrast.evaluation.statistics.logistic import (
    RIDGE,
    coefficient_influence,
    fit_logistic,
    least_information,
)


@pytest.fixture
def data() -> tuple[Any, Any, Any]:
    """Simulate 60 observations with fractional outcomes, and five bootstrap weightings."""
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(60), np.tanh(rng.normal(size=60)), rng.normal(size=60)])
    outcomes = np.clip(expit(design @ [0.3, 1.5, -0.5]) + rng.normal(0, 0.3, 60), 0, 1)
    return design, outcomes, rng.multinomial(60, np.full(60, 1 / 60), size=5).astype(float)


def slow_fit(design: Any, outcomes: Any, weights: Any) -> Any:
    """Maximise the penalised likelihood with a general optimiser."""

    def loss(b: Any) -> Any:
        eta = design @ b
        fit = outcomes * np.logaddexp(0, -eta) + (1 - outcomes) * np.logaddexp(0, eta)
        return (weights * fit).sum() + RIDGE / 2 * (b**2).sum()

    return minimize(loss, np.zeros(design.shape[1]), method="BFGS", options={"gtol": 1e-7}).x


def test_fit_equals_a_general_optimiser(data: Any) -> None:
    design, outcomes, weights = data
    fitted = fit_logistic(design, outcomes, weights, np.zeros(3))
    for coefficients, row in zip(fitted, weights, strict=True):
        assert coefficients == pytest.approx(slow_fit(design, outcomes, row), abs=1e-4)


def test_fit_with_integer_weights_equals_that_of_repeated_rows(data: Any) -> None:
    design, outcomes, weights = data
    fitted = fit_logistic(design, outcomes, weights, np.zeros(3))
    for coefficients, row in zip(fitted, weights, strict=True):
        indices = np.repeat(np.arange(60), row.astype(int))
        [repeated] = fit_logistic(design[indices], outcomes[indices], np.ones((1, 60)), np.ones(3))
        assert coefficients == pytest.approx(repeated, abs=1e-8)


def test_fit_of_many_observations_equals_statsmodels() -> None:
    """The ridge moves a coefficient b by about RIDGE * b / information, which is below 1e-4 for these data."""
    rng = np.random.default_rng(1)
    design = np.column_stack([np.ones(4000), np.tanh(rng.normal(size=4000))])
    outcomes = (rng.random(4000) < expit(design @ [-0.4, 1.2])).astype(float)
    expected = sm.GLM(outcomes, design, family=sm.families.Binomial()).fit()
    [coefficients] = fit_logistic(design, outcomes, np.ones((1, 4000)), np.zeros(2))
    assert coefficients == pytest.approx(expected.params, abs=1e-4)
    information = np.linalg.inv(expected.cov_params())
    assert least_information(design, np.ones((1, 4000)), coefficients[None]) == pytest.approx(
        np.linalg.eigvalsh(information)[:1], rel=1e-3
    )


@pytest.mark.parametrize("wins", [1.0, 0.0])
@pytest.mark.parametrize("start", [0.0, 40.0, -40.0])
def test_fit_of_separated_outcomes_balances_ridge_and_data(wins: float, start: float) -> None:
    """With only a constant in the design, the gradient is zero where n (y - σ(b)) = RIDGE b."""
    [[b]] = fit_logistic(np.ones((100, 1)), np.full(100, wins), np.ones((1, 100)), np.array([start]))
    assert 100 * (wins - expit(b)) == pytest.approx(RIDGE * b, abs=1e-8)
    assert abs(b) > 5


def test_influence_equals_the_derivative_by_weight(data: Any) -> None:
    design, outcomes, _ = data
    [fitted] = fit_logistic(design, outcomes, np.ones((1, 60)), np.zeros(3))
    influence = coefficient_influence(design, outcomes, fitted)
    for index in (0, 17, 59):
        weights = np.ones((2, 60))
        weights[:, index] += [1e-4, -1e-4]
        up, down = fit_logistic(design, outcomes, weights, fitted)
        assert influence[index] == pytest.approx((up - down) / 2e-4, abs=1e-5)
