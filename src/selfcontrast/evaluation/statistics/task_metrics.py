"""Compute intervals of metrics from their standard errors, without the observations."""

import math
from collections.abc import Mapping

import numpy as np

from selfcontrast.evaluation.statistics.bootstrap import Interval, rate_interval

STDERR = " stderr"  # suffix of the name of a metric's standard error


def metric_interval(metrics: Mapping[str, float], name: str, confidence: float) -> Interval:
    """Return a metric of a task with its interval over documents.

    The interval is Student's t with the metric's standard error. If that error is sqrt(p (1 - p) / (n - 1)), the metric
    is a fraction of right answers, and the interval is the exact binomial one, so that 20 right answers of 20 do not
    give a width of 0. Without a standard error the bounds are NaN.

    Args:
        metrics: the task's values, standard errors (`STDERR`), and the number of `documents`.
        name: the metric's name.
    """
    from scipy.special import stdtrit

    estimate, n = float(metrics[name]), int(metrics.get("documents", 0))
    error = metrics.get(name + STDERR)
    without_bounds = Interval(estimate, math.nan, math.nan, n, n, confidence)
    if error is None or not math.isfinite(error) or n < 2:
        return without_bounds
    right = round(estimate * n)
    counted = 0 <= right <= n and math.isclose(right / n, estimate, abs_tol=1e-9)
    binomial = math.sqrt(max(estimate * (1 - estimate), 0.0) / (n - 1))
    if counted and math.isclose(error, binomial, rel_tol=1e-6, abs_tol=1e-9):
        return rate_interval(np.arange(n) < right, np.arange(n), confidence=confidence)
    if error == 0:
        return without_bounds
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    return Interval(estimate, estimate - half, estimate + half, n, n, confidence)
