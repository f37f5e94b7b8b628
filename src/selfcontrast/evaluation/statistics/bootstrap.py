"""Means, win rates and paired differences, with bootstrap intervals over clusters."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from selfcontrast.evaluation.statistics.clusters import Floats, blocks, by_cluster, check_settings, differences


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; `low` and `high` are NaN where there is one cluster only."""

    estimate: float
    low: float
    high: float
    n: int
    clusters: int
    level: float


def mean_interval(
    values: ArrayLike, clusters: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """The mean over all observations, and its bootstrap interval over clusters. values, clusters: [n].

    Bias-corrected and accelerated (BCa; Efron 1987), because scores near the end of their range are skewed,
    which percentiles ignore. Its normal quantile z is expanded to sqrt(C / (C-1)) times Student's t
    (Hesterberg 2015, arXiv 1411.5279), because the bootstrap of few clusters is too narrow by that: MT-Bench
    has ten questions a category. Where every cluster has the same mean the interval has no width.
    """
    sums, counts = by_cluster(values, clusters)
    n, size = int(counts.sum()), len(sums)
    check_settings(level, resamples)
    estimate = float(sums.sum() / n)
    if size == 1:
        return Interval(estimate, np.nan, np.nan, n, size, level)
    if np.allclose(sums, estimate * counts, rtol=1e-12, atol=1e-12 * np.abs(sums / counts).max()):
        return Interval(estimate, estimate, estimate, n, size, level)
    drawn = _bootstrap(sums, counts, resamples, seed)
    leave_one_out = (sums.sum() - sums) / (n - counts)
    low, high = bca(estimate, drawn, leave_one_out.mean() - leave_one_out, 1, level)
    return Interval(estimate, low, high, n, size, level)


def standard_error(values: ArrayLike, clusters: ArrayLike) -> float:
    """Of the mean over all observations, NaN for one cluster. values, clusters: [n].

    The sandwich estimator with its C / (C-1) correction: with one observation a cluster, the textbook's s / sqrt(n).
    """
    sums, counts = by_cluster(values, clusters)
    n, size = counts.sum(), len(sums)
    if size == 1:
        return float("nan")
    residuals = sums - counts * (sums.sum() / n)
    return float(np.sqrt(size / (size - 1) * (residuals**2).sum()) / n)


def win_rate(
    outcomes: ArrayLike, clusters: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """`mean_interval` of outcomes [n], each 0, 0.5 or 1 (loss, tie, win); ValueError for another."""
    if not np.isin(outcomes, (0.0, 0.5, 1.0)).all():
        raise ValueError("outcomes must be 0, 0.5 or 1")
    return mean_interval(outcomes, clusters, level=level, resamples=resamples, seed=seed)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    clusters_b: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """mean(a - b) of two systems on the same prompts, and its interval as in `mean_interval`.

    Each system's samples of a prompt are averaged first, so every prompt weighs the same.
    a: [n]; b: [m]; clusters: [n]; clusters_b: [m], where they are not those of `a`. The result's n is n + m.
    ValueError where the two systems do not have the same clusters.
    """
    difference = differences(a, b, clusters, clusters_b)
    result = mean_interval(difference, np.arange(len(difference)), level=level, resamples=resamples, seed=seed)
    return Interval(result.estimate, result.low, result.high, np.size(a) + np.size(b), result.clusters, level)


def _bootstrap(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """Means [resamples] of as many clusters drawn with replacement."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    equal = bool((counts == counts[0]).all())
    means = []
    for rows in blocks(resamples, size):
        drawn = rng.integers(0, size, (rows, size), dtype=np.int32)
        total = size * counts[0] if equal else counts[drawn].sum(axis=1)
        means.append(sums[drawn].sum(axis=1) / total)
    return np.concatenate(means)


def bca(estimate: float, drawn: Floats, influence: Floats, parameters: int, level: float) -> tuple[float, float]:
    """Both ends of the BCa interval of an estimate (Efron 1987).

    The normal quantile z is expanded to sqrt(C / (C-k)) times Student's t for k parameters estimated from C clusters.

    Args:
        estimate: from all clusters.
        drawn: the estimate of each bootstrap sample, [resamples].
        influence: how far each cluster moves the estimate, up to a common factor, [C]; C is above k.
        parameters: k.
        level: of the interval.
    """
    size = len(influence)
    z = np.sqrt(size / (size - parameters)) * stats.t.ppf((1 + level) / 2, size - parameters)
    below = (np.mean(drawn < estimate) + np.mean(drawn <= estimate)) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    furthest = np.abs(influence).max()
    if furthest == 0:
        return estimate, estimate
    away = influence / furthest  # a ratio follows: without the scale tiny values underflow
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    shifted = bias + z * np.array([-1.0, 1.0])
    # Past a zero denominator the formula would turn round; the quantile there is the end of the range.
    probabilities = stats.norm.cdf(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-9))
    low, high = np.quantile(drawn, probabilities)
    return float(low), float(high)
