"""The crossed mean against Student's t where one factor is all there is, by hand, and in simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from selfcontrast.evaluation.statistics.crossed import crossed_mean, mean_squares

RNG = np.random.default_rng(0)


def test_one_seed_is_students_t_over_prompts() -> None:
    x = RNG.normal(0.2, 1.0, 30)
    found, expected = crossed_mean(x[None, :]), stats.ttest_1samp(x, 0.0)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.degrees == 29
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
    found = crossed_mean(table, level=0.9)
    assert found.error == pytest.approx(math.sqrt((36 + 16 - 4) / 4))
    assert found.degrees == pytest.approx(48**2 / (36**2 + 16**2 + 4**2))
    assert found.seed_error == pytest.approx(math.sqrt((36 - 4) / 4))
    half = stats.t.ppf(0.95, found.degrees) * found.error
    assert (found.low, found.high) == pytest.approx((5 - half, 5 + half))


def test_never_surer_than_seeds_or_prompts_alone() -> None:
    """Where the rest happens to outweigh both, the sum of the parts would be too small, or negative."""
    table = np.array([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.5], [0.4, 0.4, -0.5]])
    seed, prompt, rest = mean_squares(table)
    assert seed + prompt < rest + max(seed, prompt)
    assert crossed_mean(table).error == pytest.approx(math.sqrt(max(seed, prompt) / 9))


@pytest.mark.parametrize(("seed", "prompt", "rest"), [(0.02, 0.2, 0.3), (0.0, 0.2, 0.3), (0.05, 0.0, 0.3)])
def test_covers_the_truth_at_its_level(seed: float, prompt: float, rest: float) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        table = seed * rng.standard_normal((5, 1)) + prompt * rng.standard_normal((1, 80))
        table = table + rest * rng.standard_normal((5, 80)) + 0.04
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


def test_constants() -> None:
    assert (crossed_mean([[2.0, 2.0]]).low, crossed_mean([[2.0, 2.0]]).p_value) == (2.0, 0.0)
    assert math.isnan(crossed_mean([[0.0, 0.0], [0.0, 0.0]]).p_value)
    assert math.isnan(crossed_mean([[1.0]]).low)


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [[1.0, float("nan")]]])
def test_not_a_table_is_refused(values: list[object]) -> None:
    with pytest.raises(ValueError, match="table of finite numbers"):
        crossed_mean(values)  # type: ignore[arg-type]


def test_level_is_checked() -> None:
    with pytest.raises(ValueError, match="level"):
        crossed_mean([[1.0, 2.0]], level=1.0)
