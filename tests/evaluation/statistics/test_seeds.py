import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selfcontrast.evaluation.statistics import over_seeds, seeds_test


def test_three_seeds_by_hand() -> None:
    """Mean 2, standard deviation 1, so its error 1/sqrt(3); t of 2 degrees at 97.5% is 4.3027 (any table)."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.estimate, found.n, found.clusters) == (2.0, 3, 3)
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)


def test_of_two_seeds_t_is_cauchys() -> None:
    """With one degree of freedom P(|T| > t) is 1 - 2/pi arctan t; the mean 3 is 3 times its error, 1."""
    assert seeds_test([2.0, 4.0]) == pytest.approx(1 - 2 / math.pi * math.atan(3))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8).filter(lambda x: np.std(x) > 1e-6))
def test_is_scipys_t_test(differences: list[float]) -> None:
    theirs = stats.ttest_1samp(differences, 0)
    assert seeds_test(differences) == pytest.approx(theirs.pvalue, rel=1e-6)
    found, interval = over_seeds(differences, confidence=0.9), theirs.confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_what_one_seed_cannot_say() -> None:
    found = over_seeds([0.5])
    assert found.estimate == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(seeds_test([0.5]))


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.1 + 0.2, 0.3], [0.0, 1e-17, 0.0]])
def test_seeds_that_differ_by_rounding_alone_cannot_tell(values: list[float]) -> None:
    """0.1 + 0.2 is 0.3 and one bit more, which gave p = 8e-17."""
    assert math.isnan(seeds_test(values))
    assert math.isnan(over_seeds(values).low)
    assert math.isnan(over_seeds(values).high)


def test_bounds_stay_in_the_range_of_the_score() -> None:
    """Mean 0.95, error 0.03, t of 2 degrees 4.3027: 0.95 + 0.129 would be above 1."""
    found = over_seeds([0.89, 0.98, 0.98], least=0.0, most=1.0)
    assert (found.low, found.high) == (pytest.approx(0.95 - 4.30265 * 0.03, abs=1e-5), 1.0)
    assert over_seeds([0.11, 0.02, 0.02], least=0.0, most=1.0).low == 0.0
