"""Compare the crossed mean with Student's t, with numbers computed by hand, and with simulated truth."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from selfcontrast.evaluation.statistics.crossed import crossed_mean, mean_squares

RNG = np.random.default_rng(0)


def test_crossed_mean_of_one_seed_equals_students_t_over_prompts() -> None:
    x = RNG.normal(0.2, 1.0, 30)
    result, expected = crossed_mean(x[None, :]), stats.ttest_1samp(x, 0.0)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert math.isnan(result.seed_error)


def test_crossed_mean_with_only_seed_variance_equals_students_t_over_seeds() -> None:
    """All prompts gain the same from a seed, so seeds are the only source of variance."""
    means = np.array([0.01, 0.03, 0.02, 0.05, -0.01])
    result, expected = crossed_mean(np.tile(means[:, None], (1, 400))), stats.ttest_1samp(means, 0.0)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert result.seed_error == pytest.approx(means.std(ddof=1) / math.sqrt(5))


def test_crossed_mean_of_equal_seeds_equals_that_of_one_seed() -> None:
    """Repeated numbers are not new evidence. The interval stays the one over prompts alone."""
    x = RNG.normal(0.1, 1.0, 25)
    single, three = crossed_mean(x[None, :]), crossed_mean(np.tile(x, (3, 1)))
    assert (three.low, three.high) == pytest.approx((single.low, single.high))
    assert three.seed_error == pytest.approx(0, abs=1e-12)


def test_crossed_mean_of_two_seeds_and_two_prompts_equals_numbers_by_hand() -> None:
    """The table's grand mean is 5, its seeds' means are 2 and 8, and its prompts' means are 3 and 7."""
    table = np.array([[1.0, 3.0], [5.0, 11.0]])
    # Mean squares: 2 (9 + 9) / 1 of seeds, 2 (4 + 4) / 1 of prompts, and 4 / 1 of the rest, which is 1, -1, -1, 1.
    assert mean_squares(table) == pytest.approx((36, 16, 4))
    result = crossed_mean(table, confidence=0.9)
    assert result.error == pytest.approx(math.sqrt((36 + 16 - 4) / 4))
    assert result.seed_error == pytest.approx(math.sqrt((36 - 4) / 4))
    # Both parts have one degree of freedom, whose quantile at 95% is tan(0.45 pi) = 6.3138 (Cauchy's).
    half = math.tan(0.45 * math.pi) * math.sqrt((36 + 16 - 4) / 4)
    assert (result.low, result.high) == pytest.approx((5 - half, 5 + half))
    # With one quantile for both, P(|T| > t) = 1 - 2/pi arctan t at t = 5 / sqrt(12).
    assert result.p_value == pytest.approx(1 - 2 / math.pi * math.atan(5 / math.sqrt(12)))


def test_crossed_mean_seeds_and_prompts_have_separate_degrees_of_freedom() -> None:
    """Two seeds have one degree of freedom, t(1) = 12.706, even if they differ by only 0.001."""
    x = RNG.normal(0.0, 1.0, 60)
    table = np.stack([x + 0.0005, x - 0.0005])
    seed, prompt, rest = mean_squares(table)
    assert rest == pytest.approx(0, abs=1e-12)
    half = math.sqrt((12.7062**2 * seed + stats.t.ppf(0.975, 59) ** 2 * prompt) / 120)
    result = crossed_mean(table)
    assert result.high - result.estimate == pytest.approx(half, rel=1e-5)


@given(
    arrays(np.float64, st.tuples(st.integers(2, 4), st.integers(2, 6)), elements=st.floats(-1, 1)),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_crossed_mean_p_value_is_below_alpha_if_the_interval_excludes_zero(table: Any, confidence: float) -> None:
    result = crossed_mean(table, confidence)
    if math.isnan(result.low):
        assert math.isnan(result.p_value)
    elif abs(result.p_value - (1 - confidence)) > 1e-6:
        assert (result.p_value < 1 - confidence) == (result.low > 0 or result.high < 0)


def test_crossed_mean_interval_is_at_least_as_wide_as_over_prompts_alone() -> None:
    """The seeds' mean square is 0 and the prompts' is below that of the rest, so the two parts add up to 0."""
    table = np.array([[1.0, -1.0, 0.5], [-0.9, 0.9, 0.5]])
    seed, prompt, rest = mean_squares(table)
    assert seed == pytest.approx(0, abs=1e-12)
    assert 0 < prompt < rest
    result = crossed_mean(table)
    assert result.high - result.estimate == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(prompt / 6))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("seed", "prompt", "rest"), [(0.1, 0.2, 0.3), (0.0, 0.2, 0.3), (0.05, 0.0, 0.3)])
def test_crossed_mean_covers_at_its_level(seeds: int, seed: float, prompt: float, rest: float) -> None:
    """With two seeds and the first setting, pooled degrees of freedom would cover only 88%."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        table = seed * rng.standard_normal((seeds, 1)) + prompt * rng.standard_normal((1, 80))
        table = table + rest * rng.standard_normal((seeds, 80)) + 0.04
        result = crossed_mean(table)
        covered += result.low <= 0.04 <= result.high
    assert covered / 600 > 0.95 - 0.027  # 0.027 is three standard errors of 600 trials


def test_crossed_mean_covers_where_seeds_alone_do_not() -> None:
    """On the same prompts, seeds agree on effects that other prompts would not show."""
    rng = np.random.default_rng(2)
    covered = {"crossed": 0, "seeds": 0}
    for _ in range(300):
        table = 0.3 * rng.standard_normal((1, 60)) + 0.1 * rng.standard_normal((5, 60))
        result, seeds_only = crossed_mean(table), stats.ttest_1samp(table.mean(axis=1), 0).confidence_interval()
        covered["crossed"] += result.low <= 0 <= result.high
        covered["seeds"] += seeds_only.low <= 0 <= seeds_only.high
    assert covered["seeds"] < 0.75 * 300 < 0.9 * 300 < covered["crossed"]


@pytest.mark.parametrize(
    "table",
    [
        [[0.0, 0.0], [0.0, 0.0]],  # no difference anywhere
        [[1.0, 1.0]],  # one seed, on which both prompts are equal
        [[1.0]],
        [[0.1 + 0.2, 0.3], [0.3, 0.3]],  # equal up to rounding
        [[1.0, -1.0], [-1.0, 1.0]],  # cells differ, but all means of seeds and prompts are equal
    ],
)
def test_crossed_mean_without_variation_has_no_interval(table: list[list[float]]) -> None:
    result = crossed_mean(table)
    assert np.isnan([result.low, result.high, result.p_value]).all()


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [[1.0, float("nan")]]])
def test_crossed_mean_without_a_table_is_rejected(values: list[object]) -> None:
    with pytest.raises(ValueError, match="table of finite numbers"):
        crossed_mean(values)  # type: ignore[arg-type]


def test_crossed_mean_confidence_out_of_range_is_rejected() -> None:
    with pytest.raises(ValueError, match="confidence"):
        crossed_mean([[1.0, 2.0]], confidence=1.0)
