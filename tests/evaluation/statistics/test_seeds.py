import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selfcontrast.evaluation.statistics import over_seeds, seeds_test


def test_over_seeds_of_three_seeds_equals_numbers_by_hand() -> None:
    """The mean is 2, and its standard error is 1/sqrt(3). t with 2 degrees of freedom is 4.3027 at 97.5%."""
    result = over_seeds([1.0, 2.0, 3.0])
    assert (result.estimate, result.n, result.clusters) == (2.0, 3, 3)
    assert (result.low, result.high) == pytest.approx(
        (2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4
    )


def test_seeds_test_of_two_seeds_follows_the_cauchy_distribution() -> None:
    """With one degree of freedom P(|T| > t) is 1 - 2/pi arctan t. The mean 3 is 3 times its standard error."""
    assert seeds_test([2.0, 4.0]) == pytest.approx(1 - 2 / math.pi * math.atan(3))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8).filter(lambda x: np.std(x) > 1e-6))
def test_over_seeds_and_seeds_test_equal_scipy(differences: list[float]) -> None:
    expected = stats.ttest_1samp(differences, 0)
    assert seeds_test(differences) == pytest.approx(expected.pvalue, rel=1e-6)
    result, interval = over_seeds(differences, confidence=0.9), expected.confidence_interval(0.9)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))


def test_over_seeds_of_one_seed_has_no_interval() -> None:
    result = over_seeds([0.5])
    assert result.estimate == 0.5
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert math.isnan(seeds_test([0.5]))


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.1 + 0.2, 0.3], [0.0, 1e-17, 0.0]])
def test_over_seeds_equal_up_to_rounding_has_no_interval(values: list[float]) -> None:
    """0.1 + 0.2 differs from 0.3 in the last bit. An earlier version gave p = 8e-17 for these numbers."""
    assert math.isnan(seeds_test(values))
    assert math.isnan(over_seeds(values).low)
    assert math.isnan(over_seeds(values).high)


def test_over_seeds_clips_bounds_to_the_range() -> None:
    """Mean 0.95, standard error 0.03 and t = 4.3027 would give 0.95 + 0.129, which is above 1."""
    result = over_seeds([0.89, 0.98, 0.98], minimum=0.0, maximum=1.0)
    assert (result.low, result.high) == (pytest.approx(0.95 - 4.30265 * 0.03, abs=1e-5), 1.0)
    assert over_seeds([0.11, 0.02, 0.02], minimum=0.0, maximum=1.0).low == 0.0
