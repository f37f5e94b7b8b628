"""A mean over seeds and prompts at once, for a conclusion about other seeds and other prompts.

Every seed is measured on the same prompts, so y_sp = mu + seed_s + prompt_p + rest_sp with all three random: crossed
random effects, balanced, with one number per cell. The variance of the grand mean is
var(seed)/S + var(prompt)/P + var(rest)/(S P), which (MS_seed + MS_prompt - MS_rest) / (S P) estimates without bias from
the mean squares of the two-way analysis of variance (Searle, Casella and McCulloch 1992, 4.6); its degrees of freedom
are Satterthwaite's. Seeds alone as the unit would take the prompts for given, prompts alone the seeds: either is too
sure (Clark 1973, "The language-as-fixed-effect fallacy").
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from selfcontrast.evaluation.statistics.clusters import Floats


@dataclass(frozen=True)
class Crossed:
    """A mean over S seeds and P prompts.

    Attributes:
        low, high: of the interval, NaN where nothing varies that could give one.
        p_value: two-sided, of the mean being 0.
        error: standard error, over seeds and prompts.
        seed_error: its part that more prompts would not make smaller.
        degrees: of freedom.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    error: float
    seed_error: float
    degrees: float
    seeds: int
    prompts: int
    level: float


def crossed_mean(values: ArrayLike, level: float = 0.95) -> Crossed:
    """Of values [seeds, prompts]. With one seed it speaks of that seed and other prompts: Student's t over prompts.

    The estimated variance is never below what seeds alone or prompts alone give: by chance the sum can be, and even
    negative.

    Raises ValueError for anything but a table of finite numbers, or a level outside (0, 1).
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(f"values must be a table of finite numbers by seed and prompt, not of shape {table.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), not {level}")
    seeds, prompts = table.shape
    estimate = float(table.mean())
    variance, degrees = _variance(table)
    error = float(np.sqrt(variance))
    seed_error = float(np.sqrt(max(_seed_variance(table), 0.0)))
    if not error > 0:
        bound = estimate if error == 0 else float("nan")
        p = float("nan") if np.isnan(bound) or estimate == 0 else 0.0
        return Crossed(estimate, bound, bound, p, error, seed_error, degrees, seeds, prompts, level)
    half = float(stats.t.ppf((1 + level) / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(estimate) / error, degrees))
    return Crossed(estimate, estimate - half, estimate + half, p, error, seed_error, degrees, seeds, prompts, level)


def mean_squares(table: Floats) -> tuple[float, float, float]:
    """Of seeds, prompts, and what is left, of a table [S, P]; NaN where there is one of either."""
    seeds, prompts = table.shape
    grand, by_seed, by_prompt = table.mean(), table.mean(axis=1), table.mean(axis=0)
    rest = table - by_seed[:, None] - by_prompt[None, :] + grand
    return (
        _over(prompts * np.square(by_seed - grand).sum(), seeds - 1),
        _over(seeds * np.square(by_prompt - grand).sum(), prompts - 1),
        _over(np.square(rest).sum(), (seeds - 1) * (prompts - 1)),
    )


def _variance(table: Floats) -> tuple[float, float]:
    """Of the grand mean, and its degrees of freedom; NaN where there is one seed and one prompt."""
    seeds, prompts = table.shape
    seed, prompt, rest = mean_squares(table)
    if seeds == 1 or prompts == 1:
        own, degrees = (prompt, prompts - 1) if seeds == 1 else (seed, seeds - 1)
        return own / table.size, degrees
    both = seed + prompt - rest
    alone, degrees = max((seed, seeds - 1), (prompt, prompts - 1))
    if both <= alone:
        return alone / table.size, degrees
    squares = seed**2 / (seeds - 1) + prompt**2 / (prompts - 1) + rest**2 / ((seeds - 1) * (prompts - 1))
    return both / table.size, both**2 / squares


def _seed_variance(table: Floats) -> float:
    """What seeds add to the grand mean's variance: var(seed) / S. NaN for one seed, 0 at least for several."""
    seeds, prompts = table.shape
    if seeds == 1:
        return float("nan")
    seed, _, rest = mean_squares(table)
    return max(seed - (rest if prompts > 1 else 0.0), 0.0) / table.size


def _over(total: float, degrees: int) -> float:
    return float(total / degrees) if degrees else float("nan")
