"""Intervals and tests whose unit is the prompt: several observations of one prompt are not independent.

A *cluster* is the set of observations that share a prompt. Functions take one label per observation (numbers
or strings), are seeded, and raise ValueError for empty input, unequal lengths, or a value that is not finite.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

_BLOCK = 2**22  # numbers drawn at once (32 MB): bounds the memory for any count of clusters


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
    sums, counts = _cluster(values, clusters)
    n, size = int(counts.sum()), len(sums)
    _check(level, resamples)
    estimate = float(sums.sum() / n)
    if size == 1:
        return Interval(estimate, np.nan, np.nan, n, size, level)
    if np.allclose(sums, estimate * counts, rtol=1e-12, atol=1e-12 * np.abs(sums / counts).max()):
        return Interval(estimate, estimate, estimate, n, size, level)
    drawn = _bootstrap(sums, counts, resamples, seed)
    z = float(np.sqrt(size / (size - 1)) * stats.t.ppf((1 + level) / 2, size - 1))
    leave_one_out = (sums.sum() - sums) / (n - counts)
    low, high = np.quantile(drawn, _bca(estimate, drawn, leave_one_out, z))
    return Interval(estimate, float(low), float(high), n, size, level)


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
    difference = _differences(a, b, clusters, clusters_b)
    result = mean_interval(difference, np.arange(len(difference)), level=level, resamples=resamples, seed=seed)
    return Interval(result.estimate, result.low, result.high, np.size(a) + np.size(b), result.clusters, level)


def paired_permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    clusters_b: ArrayLike | None = None,
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> float:
    """Two-sided p-value in (0, 1] of `paired_difference`, by flipping signs of the clusters' differences.

    Exact where there are no more sign patterns than `resamples`; else (1 + hits) / (1 + resamples), which is
    never 0 and keeps the test's level (Phipson & Smyth 2010). Shapes and errors as in `paired_difference`.
    """
    _check(0.5, resamples)
    difference = _differences(a, b, clusters, clusters_b)
    difference = difference[difference != 0]  # flipping a tie changes nothing
    bar = abs(difference.sum()) - 1e-12 * np.abs(difference).sum()  # rounding must not hide an equal sum
    size = len(difference)
    if 2**size <= resamples:
        patterns = np.arange(2**size)[:, None] >> np.arange(size) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ difference) >= bar))
    rng = np.random.default_rng(seed)
    hits = 0
    for rows in _blocks(resamples, size):
        # A flipped subset's sum decides the total: sum - 2 * flipped.
        flipped = rng.integers(0, 2, (rows, size), dtype=np.int8) @ difference
        hits += int(np.count_nonzero(np.abs(difference.sum() - 2 * flipped) >= bar))
    return (1 + hits) / (1 + resamples)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values [m], in the order given (Holm 1979). ValueError outside [0, 1]."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be a list of numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _cluster(values: ArrayLike, clusters: ArrayLike) -> tuple[Floats, Floats]:
    """Sum [C] and count [C] of each cluster's values, in the order of the sorted labels."""
    x, labels = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if x.ndim != 1 or x.shape != labels.shape:
        raise ValueError(f"values and clusters must be lists of one length, not {x.shape} and {labels.shape}")
    if x.size == 0:
        raise ValueError("no observations")
    if not np.isfinite(x).all():
        raise ValueError("values must be finite: take missing scores out first, and count them")
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, weights=x).astype(np.float64), np.bincount(index).astype(np.float64)


def _differences(a: ArrayLike, b: ArrayLike, clusters: ArrayLike, clusters_b: ArrayLike | None) -> Floats:
    """mean(a) - mean(b) of every cluster, [C]."""
    other = clusters if clusters_b is None else clusters_b
    if not np.array_equal(np.unique(np.asarray(clusters)), np.unique(np.asarray(other))):
        raise ValueError("the two systems must have the same clusters")
    (sum_a, count_a), (sum_b, count_b) = _cluster(a, clusters), _cluster(b, other)
    mean_a, mean_b = sum_a / count_a, sum_b / count_b
    # Rounding is no difference: the same scores in another order would else be "better" in every cluster.
    return np.where(np.isclose(mean_a, mean_b, rtol=1e-12, atol=0), 0.0, mean_a - mean_b)


def _check(level: float, resamples: int) -> None:
    if not (0 < level < 1 and resamples >= 1):
        raise ValueError(f"level must be in (0, 1) and resamples above 0, not {level} and {resamples}")


def _blocks(resamples: int, size: int) -> Iterator[int]:
    """Row counts that add up to `resamples`, each times `size` within `_BLOCK`."""
    rows = max(1, _BLOCK // size)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def _bootstrap(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """Means [resamples] of as many clusters drawn with replacement."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    equal = bool((counts == counts[0]).all())
    means = []
    for rows in _blocks(resamples, size):
        drawn = rng.integers(0, size, (rows, size), dtype=np.int32)
        total = size * counts[0] if equal else counts[drawn].sum(axis=1)
        means.append(sums[drawn].sum(axis=1) / total)
    return np.concatenate(means)


def _bca(estimate: float, drawn: Floats, leave_one_out: Floats, z: float) -> Floats:
    """The two probabilities at which the drawn means are to be read (Efron 1987)."""
    below = (np.mean(drawn < estimate) + np.mean(drawn <= estimate)) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    away = leave_one_out.mean() - leave_one_out
    away = away / max(np.abs(away).max(), np.finfo(np.float64).tiny)  # a ratio: scale it, or tiny values underflow
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    shifted = bias + z * np.array([-1.0, 1.0])
    # Past a zero denominator the formula would turn round; the quantile there is the end of the range.
    probabilities: Floats = stats.norm.cdf(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-9))
    return probabilities
