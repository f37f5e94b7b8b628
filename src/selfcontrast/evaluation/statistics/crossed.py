"""Estimate a mean over seeds and prompts, for conclusions about other seeds and other prompts.

Every seed is measured on the same prompts, so y_sp = mu + seed_s + prompt_p + rest_sp with all three random: balanced
crossed random effects, with one number per cell. The variance of the grand mean is
var(seed)/S + var(prompt)/P + var(rest)/(S P). Its unbiased estimate is (MS_seed + MS_prompt - MS_rest) / (S P), from
the mean squares of the two-way analysis of variance (Searle, Casella and McCulloch 1992, 4.6). An interval over
seeds treats the prompts as fixed, and an interval over prompts treats the seeds as fixed. Both are too narrow (Clark
1973, "The language-as-fixed-effect fallacy").

With two or three seeds MS_seed is often small by chance. Pooled degrees of freedom (Welch, Satterthwaite) are then
nearly those of the prompts, and the interval covers as little as 88% instead of 95%. So each part keeps the quantile of
its own degrees of freedom (Banerjee 1961, Sankhya A 23, 359):

    half-width^2 = [t^2(S-1) MS_seed + t^2(P-1) max(MS_prompt - MS_rest, 0)] / (S P)

In simulations with 2, 3 and 5 seeds this interval covers 94.0 to 99.6% (benchmarks/RESULTS.md). No valid interval was
found that is clearly narrower: with Behrens-Fisher quantiles, intervals are from 5% narrower to 6% wider.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from selfcontrast.evaluation.statistics.clusters import Floats, varies


@dataclass(frozen=True)
class CrossedMean:
    """A mean over S seeds and P prompts.

    Attributes:
        low, high: bounds of the interval; NaN without variation.
        p_value: two-sided, for a mean of 0; NaN without variation.
        error: standard error over seeds and prompts.
        seed_error: the part of `error` that more prompts would not reduce.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    error: float
    seed_error: float
    seeds: int
    prompts: int
    confidence: float


def crossed_mean(values: ArrayLike, confidence: float = 0.95) -> CrossedMean:
    """Estimate the mean of values [seeds, prompts] with an interval for other seeds and other prompts.

    With one seed the interval is Student's t over prompts: it is valid for that seed and other prompts. A table without
    variation has no interval and no p-value, since it does not show how much seeds or prompts differ.

    Raises ValueError for values that are not a table of finite numbers, or a confidence level outside (0, 1).
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"values must be a table of finite numbers by seed and prompt, not of shape {table.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), not {confidence}")
    seeds, prompts = table.shape
    estimate = float(table.mean())
    nan = float("nan")
    seed_error = float(np.sqrt(_seed_variance(table)))
    if not varies(table):
        return CrossedMean(
            estimate, nan, nan, nan, nan if table.size == 1 else 0.0, seed_error, seeds, prompts, confidence
        )
    squares = mean_squares(table)
    half_width = _half_width(squares, seeds, prompts, 1 - confidence)
    error = _half_width(squares, seeds, prompts, None)
    if not half_width > 0:  # neither the seeds' means nor the prompts' means differ, only single cells
        return CrossedMean(estimate, nan, nan, nan, error, seed_error, seeds, prompts, confidence)
    p = _p_value(squares, seeds, prompts, abs(estimate))
    low, high = estimate - half_width, estimate + half_width
    return CrossedMean(estimate, low, high, p, error, seed_error, seeds, prompts, confidence)


def mean_squares(table: Floats) -> tuple[float, float, float]:
    """Return the mean squares of seeds, prompts and the rest of a table [S, P]; NaN for a single seed or prompt."""
    seeds, prompts = table.shape
    grand, by_seed, by_prompt = table.mean(), table.mean(axis=1), table.mean(axis=0)
    rest = table - by_seed[:, None] - by_prompt[None, :] + grand
    return (
        _mean_square(prompts * np.square(by_seed - grand).sum(), seeds - 1),
        _mean_square(seeds * np.square(by_prompt - grand).sum(), prompts - 1),
        _mean_square(np.square(rest).sum(), (seeds - 1) * (prompts - 1)),
    )


def _half_width(squares: tuple[float, float, float], seeds: int, prompts: int, alpha: float | None) -> float:
    """Return the half-width of the 1 - alpha interval; the standard error if alpha is None.

    It is at least the half-width over prompts alone. The formula may give less if the seeds' means happen to be equal.
    """
    from scipy.special import stdtrit  # the quantile of Student's t

    def part(square: float, degrees: int) -> float:
        return square * (1.0 if alpha is None else float(stdtrit(degrees, alpha / 2)) ** 2)

    seed, prompt, rest = squares
    if seeds == 1:
        total = part(prompt, prompts - 1)
    elif prompts == 1:
        total = part(seed, seeds - 1)
    else:
        combined = part(seed, seeds - 1) + part(max(prompt - rest, 0.0), prompts - 1)
        total = max(combined, part(prompt, prompts - 1))
    return float(np.sqrt(total / (seeds * prompts)))


def _p_value(squares: tuple[float, float, float], seeds: int, prompts: int, distance: float) -> float:
    """Return the alpha at which the interval's half-width is `distance`."""
    from scipy.optimize import brentq

    def excess(log_alpha: float) -> float:
        return _half_width(squares, seeds, prompts, float(np.exp(log_alpha))) - distance

    lowest = float(np.log(1e-100))
    return float(np.exp(brentq(excess, lowest, 0.0, xtol=1e-10))) if excess(lowest) > 0 else 0.0


def _seed_variance(table: Floats) -> float:
    """Return the seeds' part of the grand mean's variance, var(seed) / S: NaN for one seed, at least 0 for several."""
    seeds, prompts = table.shape
    if seeds == 1:
        return float("nan")
    seed, _, rest = mean_squares(table)
    return max(seed - (rest if prompts > 1 else 0.0), 0.0) / table.size


def _mean_square(total: float, degrees: int) -> float:
    return float(total / degrees) if degrees else float("nan")
