"""Compute means, rates and paired differences, with intervals clustered by prompt."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from selfcontrast.evaluation.statistics.clusters import (
    Floats,
    blocks,
    by_cluster,
    check_settings,
    differences,
    varies,
)


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    `low` and `high` are NaN if the data give no interval: for one cluster, or clusters that do not differ.
    """

    estimate: float
    low: float
    high: float
    n: int
    clusters: int
    confidence: float


def mean_interval(
    values: ArrayLike, clusters: ArrayLike, *, confidence: float = 0.95, n_bootstrap: int = 9999, seed: int = 0
) -> Interval:
    """Return the mean over all observations with its interval over clusters. values, clusters: [n].

    Two intervals are computed, which fail in different cases (benchmarks/RESULTS.md). Each bound is the outer one of
    their two bounds:

    - The bias-corrected and accelerated bootstrap (BCa; Efron 1987) adapts to skewed scores. It is too narrow for few,
      mostly tied clusters: it covers 81% instead of 95% at 20 clusters. Its normal quantile z is replaced by
      sqrt(C / (C-1)) times Student's t (Hesterberg 2015, arXiv 1411.5279), which corrects for few clusters.
    - Student's t interval is valid with ties and few clusters, but not with skew.

    If the clusters' means do not differ, their variance is unknown and the bounds are NaN. For a fraction of outcomes
    use `rate_interval`: its interval has a width even if all means are equal.
    """
    sums, counts = by_cluster(values, clusters)
    n, size = int(counts.sum()), len(sums)
    check_settings(confidence, n_bootstrap)
    estimate = float(sums.sum() / n)
    if size == 1 or not varies(sums / counts):
        return Interval(estimate, np.nan, np.nan, n, size, confidence)
    replicates = _bootstrap(sums, counts, n_bootstrap, seed)
    leave_one_out = (sums.sum() - sums) / (n - counts)
    low, high = bca(estimate, replicates, leave_one_out.mean() - leave_one_out, 1, confidence)
    half_width = _t_quantile(confidence, size - 1) * _standard_error(sums, counts)
    low, high = min(low, estimate - half_width), max(high, estimate + half_width)
    return Interval(estimate, low, high, n, size, confidence)


def rate_interval(outcomes: ArrayLike, clusters: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return the mean of outcomes in [0, 1] with its interval over clusters. outcomes, clusters: [n].

    This is Clopper and Pearson's interval at the effective sample size: the number of independent wins and losses whose
    mean varies as much as that of the clusters (Korn and Graubard 1998, Survey Methodology 24, 193). It stays in [0, 1]
    and has a width even if all outcomes are the same. If every cluster is a win or a loss, it is the exact binomial
    interval. Otherwise the clusters' variance is uncertain too, and two corrections account for this:

    - One cluster of the largest variance is added, so that 20 ties in 20 clusters do not give a width of 0.
    - The effective size is multiplied by (z/t)^2. The degrees of freedom of t are the number of clusters that differ
      from the most frequent value, plus 2, and at most C-1: with 98 perfect prompts and 2 others only those 2 carry
      information about the variance.

    In all simulated settings its coverage is at least its confidence level, within the simulation's error, and higher
    if outcomes are few or mostly equal (benchmarks/RESULTS.md).

    Raises:
        ValueError: for an outcome outside [0, 1], and as in `mean_interval`.
    """
    from scipy.special import betaincinv, ndtri

    values = np.asarray(outcomes, dtype=np.float64)
    by_cluster(values, clusters)  # checks the input
    if not ((values >= -1e-9) & (values <= 1 + 1e-9)).all():  # by rounding, a mean of ones may exceed 1
        raise ValueError("outcomes must be in [0, 1]")
    sums, counts = by_cluster(np.clip(values, 0, 1), clusters)
    n, size = int(counts.sum()), len(sums)
    check_settings(confidence, 1)
    estimate = min(float(sums.sum() / n), 1.0)
    if size == 1:
        return Interval(estimate, np.nan, np.nan, n, size, confidence)
    means = sums / counts
    effective_size = float(size)
    exact = np.isin(means, (0.0, 1.0)).all() and (estimate in (0.0, 1.0) or (counts == counts[0]).all())
    if not exact:
        scaled = ((sums - counts * estimate) * size / n) ** 2
        mode_count = np.unique(means.round(12), return_counts=True)[1].max()
        quantile = _t_quantile(confidence, min(size - 1, size - int(mode_count) + 2))
        effective_size = size**2 / (scaled.sum() / (estimate * (1 - estimate)) + 1)
        effective_size *= (float(ndtri((1 + confidence) / 2)) / quantile) ** 2
    wins, losses, tail = effective_size * estimate, effective_size * (1 - estimate), (1 - confidence) / 2
    low = float(betaincinv(wins, losses + 1, tail)) if wins > 0 else 0.0
    high = float(betaincinv(wins + 1, losses, 1 - tail)) if losses > 0 else 1.0
    return Interval(estimate, low, high, n, size, confidence)


def standard_error(values: ArrayLike, clusters: ArrayLike) -> float:
    """Return the standard error of the mean over all observations; NaN for one cluster. values, clusters: [n].

    It is the sandwich estimator with the correction C / (C-1). With one observation per cluster it is s / sqrt(n).
    """
    sums, counts = by_cluster(values, clusters)
    return _standard_error(sums, counts) if len(sums) > 1 else float("nan")


def win_rate(outcomes: ArrayLike, clusters: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return `rate_interval` of outcomes [n], each 0, 0.5 or 1 (loss, tie, win); ValueError for other values."""
    if not np.isin(outcomes, (0.0, 0.5, 1.0)).all():
        raise ValueError("outcomes must be 0, 0.5 or 1")
    return rate_interval(outcomes, clusters, confidence=confidence)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    clusters_b: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 9999,
    seed: int = 0,
) -> Interval:
    """Return mean(a - b) of two systems on the same prompts, with its interval as in `mean_interval`.

    Each system's samples of a prompt are averaged first, so all prompts have the same weight.

    Args:
        a: values of the first system, [n].
        b: values of the second system, [m].
        clusters: prompts of `a`, [n].
        clusters_b: prompts of `b`, [m]; None if `b` has the prompts of `a` in the same order.

    Returns:
        The interval, whose n is n + m.

    Raises:
        ValueError: if the two systems do not have the same clusters.
    """
    difference = differences(a, b, clusters, clusters_b)
    result = mean_interval(
        difference, np.arange(len(difference)), confidence=confidence, n_bootstrap=n_bootstrap, seed=seed
    )
    return Interval(result.estimate, result.low, result.high, np.size(a) + np.size(b), result.clusters, confidence)


def _bootstrap(sums: Floats, counts: Floats, n_bootstrap: int, seed: int) -> Floats:
    """Return the mean of each bootstrap sample of clusters, [resamples]."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    equal = bool((counts == counts[0]).all())
    means = []
    for rows in blocks(n_bootstrap, size):
        indices = rng.integers(0, size, (rows, size), dtype=np.int32)
        total = size * counts[0] if equal else counts[indices].sum(axis=1)
        means.append(sums[indices].sum(axis=1) / total)
    return np.concatenate(means)


def _standard_error(sums: Floats, counts: Floats) -> float:
    """Return the sandwich estimate from at least two clusters' sums [C] and counts [C]."""
    n, size = counts.sum(), len(sums)
    residuals = sums - counts * (sums.sum() / n)
    return float(np.sqrt(size / (size - 1) * (residuals**2).sum()) / n)


def _t_quantile(confidence: float, degrees: int) -> float:
    """Return the quantile of Student's t for a two-sided interval."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def bca(
    estimate: float, replicates: Floats, influence: Floats, parameters: int, confidence: float
) -> tuple[float, float]:
    """Return both bounds of the BCa interval of an estimate (Efron 1987).

    The normal quantile z is replaced by sqrt(C / (C-k)) times Student's t for k parameters estimated from C clusters.

    Args:
        estimate: the estimate from all clusters.
        replicates: the estimate from each bootstrap sample, [resamples].
        influence: each cluster's influence on the estimate, up to a common factor, [C]; C must exceed k.
        parameters: k.
        confidence: the confidence level.
    """
    from scipy.special import ndtr, ndtri

    size = len(influence)
    z = np.sqrt(size / (size - parameters)) * _t_quantile(confidence, size - parameters)
    below = (np.mean(replicates < estimate) + np.mean(replicates <= estimate)) / 2
    bias = ndtri(np.clip(below, 0.5 / len(replicates), 1 - 0.5 / len(replicates)))
    largest = np.abs(influence).max()
    if largest == 0:
        return estimate, estimate
    scaled = influence / largest  # the ratio below does not depend on scale, but tiny values would underflow
    acceleration = (scaled**3).sum() / (6 * (scaled**2).sum() ** 1.5)
    shifted = bias + z * np.array([-1.0, 1.0])
    # If the denominator is negative, the formula has the wrong sign. Then the bound is the end of the range.
    probabilities = ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-9))
    low, high = np.quantile(replicates, probabilities)
    return float(low), float(high)
