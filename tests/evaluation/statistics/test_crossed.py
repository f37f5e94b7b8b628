"""The crossed mean against Student's t where one factor is all there is, by hand, and in simulation."""

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


def test_one_seed_is_students_t_over_prompts() -> None:
    x = RNG.normal(0.2, 1.0, 30)
    found, expected = crossed_mean(x[None, :]), stats.ttest_1samp(x, 0.0)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert math.isnan(found.seed_error)


def test_seeds_alone_is_students_t_over_seeds() -> None:
    """Every prompt gains the same from a seed: what seeds differ by is all the uncertainty there is."""
    means = np.array([0.01, 0.03, 0.02, 0.05, -0.01])
    found, expected = crossed_mean(np.tile(means[:, None], (1, 400))), stats.ttest_1samp(means, 0.0)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.seed_error == pytest.approx(means.std(ddof=1) / math.sqrt(5))


def test_equal_seeds_are_one() -> None:
    """The same numbers again are no new evidence: the interval stays that of prompts alone."""
    x = RNG.normal(0.1, 1.0, 25)
    one, three = crossed_mean(x[None, :]), crossed_mean(np.tile(x, (3, 1)))
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert three.seed_error == pytest.approx(0, abs=1e-12)


def test_by_hand() -> None:
    """Rows 1, 3 and 5, 11: grand mean 5, seeds' means 2 and 8, prompts' 3 and 7."""
    table = np.array([[1.0, 3.0], [5.0, 11.0]])
    # Seeds: 2 (9 + 9) / 1; prompts: 2 (4 + 4) / 1; the rest is 1, -1, -1, 1: 4 / 1.
    assert mean_squares(table) == pytest.approx((36, 16, 4))
    found = crossed_mean(table, confidence=0.9)
    assert found.error == pytest.approx(math.sqrt((36 + 16 - 4) / 4))
    assert found.seed_error == pytest.approx(math.sqrt((36 - 4) / 4))
    # Both parts have one degree of freedom, whose quantile at 95% is tan(0.45 pi) = 6.3138 (Cauchy's).
    half = math.tan(0.45 * math.pi) * math.sqrt((36 + 16 - 4) / 4)
    assert (found.low, found.high) == pytest.approx((5 - half, 5 + half))
    # With one quantile for both, P(|T| > t) = 1 - 2/pi arctan t at t = 5 / sqrt(12).
    assert found.p_value == pytest.approx(1 - 2 / math.pi * math.atan(5 / math.sqrt(12)))


def test_each_part_has_its_own_degrees_of_freedom() -> None:
    """Two seeds that are equal by chance, but for 0.001, are not the certainty of 60 prompts: t(1) = 12.706."""
    x = RNG.normal(0.0, 1.0, 60)
    table = np.stack([x + 0.0005, x - 0.0005])
    seed, prompt, rest = mean_squares(table)
    assert rest == pytest.approx(0, abs=1e-12)
    half = math.sqrt((12.7062**2 * seed + stats.t.ppf(0.975, 59) ** 2 * prompt) / 120)
    found = crossed_mean(table)
    assert found.high - found.estimate == pytest.approx(half, rel=1e-5)


@given(
    arrays(np.float64, st.tuples(st.integers(2, 4), st.integers(2, 6)), elements=st.floats(-1, 1)),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_the_p_value_is_the_level_at_which_the_interval_reaches_zero(table: Any, confidence: float) -> None:
    found = crossed_mean(table, confidence)
    if math.isnan(found.low):
        assert math.isnan(found.p_value)
    elif abs(found.p_value - (1 - confidence)) > 1e-6:
        assert (found.p_value < 1 - confidence) == (found.low > 0 or found.high < 0)


def test_never_surer_than_prompts_alone() -> None:
    """Where the rest happens to outweigh the prompts and the seeds' means are equal, the sum of the parts is 0."""
    table = np.array([[1.0, -1.0, 0.5], [-0.9, 0.9, 0.5]])
    seed, prompt, rest = mean_squares(table)
    assert seed == pytest.approx(0, abs=1e-12)
    assert 0 < prompt < rest
    found = crossed_mean(table)
    assert found.high - found.estimate == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(prompt / 6))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("seed", "prompt", "rest"), [(0.1, 0.2, 0.3), (0.0, 0.2, 0.3), (0.05, 0.0, 0.3)])
def test_covers_the_truth_at_its_level(seeds: int, seed: float, prompt: float, rest: float) -> None:
    """With two seeds and the first setting, degrees of freedom pooled over both parts cover 88%."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        table = seed * rng.standard_normal((seeds, 1)) + prompt * rng.standard_normal((1, 80))
        table = table + rest * rng.standard_normal((seeds, 80)) + 0.04
        found = crossed_mean(table)
        covered += found.low <= 0.04 <= found.high
    assert covered / 600 > 0.95 - 0.027  # three standard errors of 600 trials; being too wide is no error


def test_seeds_alone_would_be_too_sure_of_other_prompts() -> None:
    """What the crossed interval is for: over the same prompts, seeds agree on what another set would not show."""
    rng = np.random.default_rng(2)
    covered = {"crossed": 0, "seeds": 0}
    for _ in range(300):
        table = 0.3 * rng.standard_normal((1, 60)) + 0.1 * rng.standard_normal((5, 60))
        found, alone = crossed_mean(table), stats.ttest_1samp(table.mean(axis=1), 0).confidence_interval()
        covered["crossed"] += found.low <= 0 <= found.high
        covered["seeds"] += alone.low <= 0 <= alone.high
    assert covered["seeds"] < 0.75 * 300 < 0.9 * 300 < covered["crossed"]


@pytest.mark.parametrize(
    "table",
    [
        [[0.0, 0.0], [0.0, 0.0]],  # no difference anywhere
        [[1.0, 1.0]],  # two prompts of all ones
        [[1.0]],
        [[0.1 + 0.2, 0.3], [0.3, 0.3]],  # equal but for rounding
        [[1.0, -1.0], [-1.0, 1.0]],  # seeds agree, prompts agree, and only the cells differ
    ],
)
def test_a_table_that_cannot_tell_has_no_interval(table: list[list[float]]) -> None:
    found = crossed_mean(table)
    assert np.isnan([found.low, found.high, found.p_value]).all()


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [[1.0, float("nan")]]])
def test_not_a_table_is_refused(values: list[object]) -> None:
    with pytest.raises(ValueError, match="table of finite numbers"):
        crossed_mean(values)  # type: ignore[arg-type]


def test_level_is_checked() -> None:
    with pytest.raises(ValueError, match="confidence"):
        crossed_mean([[1.0, 2.0]], confidence=1.0)
