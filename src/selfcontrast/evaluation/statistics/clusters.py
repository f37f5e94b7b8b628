"""Group observations by cluster, the unit of every interval and test in this package."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_BLOCK = 2**22  # random numbers per block (32 MB), which bounds the memory for any number of clusters


def by_cluster(values: ArrayLike, clusters: ArrayLike) -> tuple[Floats, Floats]:
    """Return sum [C] and count [C] of each cluster's values, in the order of the sorted labels."""
    x, labels = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if x.ndim != 1 or x.shape != labels.shape:
        raise ValueError(f"values and clusters must be lists of one length, not {x.shape} and {labels.shape}")
    if x.size == 0:
        raise ValueError("there are no observations. Give at least one.")
    if not np.isfinite(x).all():
        raise ValueError("values must be finite. Remove missing scores first, and count them.")
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, weights=x).astype(np.float64), np.bincount(index).astype(np.float64)


def differences(a: ArrayLike, b: ArrayLike, clusters: ArrayLike, clusters_b: ArrayLike | None) -> Floats:
    """Return mean(a) - mean(b) of every cluster, [C]."""
    other = clusters if clusters_b is None else clusters_b
    if not np.array_equal(np.unique(np.asarray(clusters)), np.unique(np.asarray(other))):
        raise ValueError("the two systems must have the same clusters")
    (sum_a, count_a), (sum_b, count_b) = by_cluster(a, clusters), by_cluster(b, other)
    mean_a, mean_b = sum_a / count_a, sum_b / count_b
    # A rounding error is no difference. Otherwise a system with the same scores in another order could seem better.
    return np.where(np.isclose(mean_a, mean_b, rtol=1e-12, atol=0), 0.0, mean_a - mean_b)


def varies(values: ArrayLike) -> bool:
    """Return True if values differ by more than rounding errors, unlike 0.1 + 0.2 and 0.3."""
    x = np.asarray(values, dtype=np.float64)
    return bool(np.ptp(x) > 1e-12 * max(float(np.abs(x).max()), 1e-3))


def check_settings(confidence: float, n_bootstrap: int) -> None:
    """Raise ValueError for a confidence level outside (0, 1) or fewer than one resample."""
    if not (0 < confidence < 1 and n_bootstrap >= 1):
        raise ValueError(f"confidence must be in (0, 1) and n_bootstrap above 0, not {confidence} and {n_bootstrap}")


def blocks(n_bootstrap: int, size: int) -> Iterator[int]:
    """Yield row counts that add up to `n_bootstrap`, each at most `_BLOCK` / `size`."""
    rows = max(1, _BLOCK // size)
    for start in range(0, n_bootstrap, rows):
        yield min(rows, n_bootstrap - start)
