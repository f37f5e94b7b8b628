"""Test two systems on the same prompts without assumptions on the distribution of scores."""

import numpy as np
from numpy.typing import ArrayLike

from selfcontrast.evaluation.statistics.clusters import blocks, check_settings, differences


def least_p_value(prompts: int | None, n_bootstrap: int) -> float:
    """Return the smallest possible p-value of `paired_permutation_test`.

    Args:
        prompts: number of prompts; None for very many.
    """
    exact = prompts is not None and 2**prompts <= n_bootstrap
    return 2.0 / 2**prompts if exact and prompts else 1 / (1 + n_bootstrap)


def paired_permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    clusters_b: ArrayLike | None = None,
    *,
    n_bootstrap: int = 9999,
    seed: int = 0,
) -> float:
    """Return the two-sided p-value in (0, 1] of `paired_difference`, by flipping signs of the clusters' differences.

    With at most `n_bootstrap` sign patterns the p-value is exact. Otherwise it is (1 + hits) / (1 + n_bootstrap), which
    is never 0 and keeps the test's level (Phipson & Smyth 2010). Shapes and errors are as in `paired_difference`.
    """
    check_settings(0.5, n_bootstrap)
    difference = differences(a, b, clusters, clusters_b)
    difference = difference[difference != 0]  # flipping a tie changes nothing
    threshold = abs(difference.sum()) - 1e-12 * np.abs(difference).sum()  # rounding must not hide an equal sum
    size = len(difference)
    if 2**size <= n_bootstrap:
        patterns = np.arange(2**size)[:, None] >> np.arange(size) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ difference) >= threshold))
    rng = np.random.default_rng(seed)
    hits = 0
    for rows in blocks(n_bootstrap, size):
        # The total after flipping a subset is sum - 2 * (the subset's sum).
        flipped = rng.integers(0, 2, (rows, size), dtype=np.int8) @ difference
        hits += int(np.count_nonzero(np.abs(difference.sum() - 2 * flipped) >= threshold))
    return (1 + hits) / (1 + n_bootstrap)
