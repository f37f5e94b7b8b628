"""Correct p-values for multiple tests. Uncorrected tests at 5% reject one in twenty true null hypotheses."""

import numpy as np
from numpy.typing import ArrayLike

from selfcontrast.evaluation.statistics.clusters import Floats


def holm(p_values: ArrayLike) -> Floats:
    """Return Holm's step-down adjusted p-values [m], in the input's order (Holm 1979); ValueError outside [0, 1]."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be a list of numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
