"""Compute intervals and tests over training seeds, from one number per seed."""

import numpy as np
from numpy.typing import ArrayLike

from selfcontrast.evaluation.statistics.bootstrap import Interval
from selfcontrast.evaluation.statistics.clusters import varies


def over_seeds(
    values: ArrayLike, *, confidence: float = 0.95, minimum: float = -np.inf, maximum: float = np.inf
) -> Interval:
    """Return the mean of one number per seed, values: [n], with Student's t interval.

    The interval covers the randomness of training, not the choice of prompts, which are the same for every seed. Its
    bounds are NaN for a single seed and for seeds that do not differ, since their variance is unknown. Other bounds are
    clipped to `minimum` and `maximum`, the range of possible values.
    """
    from scipy import stats

    x = np.asarray(values, dtype=np.float64)
    n, estimate = len(x), float(x.mean())
    if n == 1 or not varies(x):
        return Interval(estimate, np.nan, np.nan, n, n, confidence)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * x.std(ddof=1) / np.sqrt(n))
    return Interval(estimate, max(estimate - half, minimum), min(estimate + half, maximum), n, n, confidence)


def seeds_test(differences: ArrayLike) -> float:
    """Return the two-sided p-value of Student's t test that the mean of one difference per seed is 0.

    NaN for a single seed, and if all differences are equal up to rounding, since their variance is unknown.
    """
    from scipy import stats

    x = np.asarray(differences, dtype=np.float64)
    if len(x) == 1 or not varies(x):
        return float("nan")
    return float(2 * stats.t.sf(abs(x.mean()) / (x.std(ddof=1) / np.sqrt(len(x))), len(x) - 1))
