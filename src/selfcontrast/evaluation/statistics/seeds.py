"""Over training seeds: what another seed would give, where each seed has one number."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from selfcontrast.evaluation.statistics.bootstrap import Interval


def over_seeds(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """The mean of one number per seed, values: [n], with Student's t interval; NaN bounds for a single seed.

    It covers what training draws at random, not which prompts were asked: those are the same for every seed.
    """
    x = np.asarray(values, dtype=np.float64)
    n, estimate = len(x), float(x.mean())
    if n == 1:
        return Interval(estimate, np.nan, np.nan, n, n, level)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / np.sqrt(n))
    return Interval(estimate, estimate - half, estimate + half, n, n, level)


def seeds_test(differences: ArrayLike) -> float:
    """Two-sided p-value of Student's t test that the mean of one difference per seed is 0.

    NaN for a single seed, and where all differ by the same amount, as then nothing says how much seeds vary.
    """
    x = np.asarray(differences, dtype=np.float64)
    if len(x) == 1 or np.ptp(x) == 0:
        return float("nan")
    return float(2 * stats.t.sf(abs(x.mean()) / (x.std(ddof=1) / np.sqrt(len(x))), len(x) - 1))
