"""A win rate at equal length: judges prefer longer answers, and a win rate alone rewards whoever writes more.

The model is AlpacaEval 2's (Dubois et al. 2024, arXiv 2404.04475): the log-odds of a win over the baseline are

    model + length * tanh(Δ / std(Δ)) + difficulty * d,        Δ: the answer's length less the baseline's,

read at Δ = 0 and averaged over the judgments. AlpacaEval's standard error is that of one fit's predictions; here the
model is fitted again in every bootstrap sample of prompts. A small ridge takes the place of its cross-validated
penalty, so that every fit is one convex problem with one answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, stdtrit

from selfcontrast.evaluation.statistics.bootstrap import Interval, bca
from selfcontrast.evaluation.statistics.clusters import Floats, blocks, check_settings, varies
from selfcontrast.evaluation.statistics.logistic import (
    coefficient_covariance,
    coefficient_influence,
    fit_logistic,
    least_information,
)

Judgments = tuple[ArrayLike, ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]
"""Outcomes, length differences, clusters, and difficulties where they are known."""

LEAST_INFORMATION = 0.5
"""As much as two judgments at even odds give: a fit that rests on less, in some direction, rests on the ridge."""


FRAGILE = 0.05
"""Above this fraction of fragile refits an interval is said to be weak: they reach beyond its 2.5% quantiles."""


@dataclass(frozen=True)
class Coefficients:
    """Log-odds of a win.

    Attributes:
        model: at equal length and a difficulty of 0.
        length: per unit of tanh(Δ / std(Δ)); above 0 where longer answers win.
        difficulty: per unit of the instruction's difficulty.
    """

    model: float
    length: float
    difficulty: float


@dataclass(frozen=True)
class Controlled:
    """A win rate at equal length, or the difference of two.

    Attributes:
        interval: the rate in [0, 1], or the difference. Under `near_separation` it is as wide as the prior has it.
        near_separation: whether the data alone hardly determine the fit: (nearly) all wins or all losses, outcomes
            that length alone decides, or lengths that all differ by the same. The rate then means little.
        fragile_refits: fraction of the bootstrap's refits of which the same is true: well above 0, it is the interval
            that means little. NaN where there was none.
    """

    interval: Interval
    near_separation: bool
    fragile_refits: float

    @property
    def weakness(self) -> str:
        """What a reader must know beside the number; "" where the data determine it."""
        if self.near_separation:
            return "weak: the data hardly determine it"
        if self.fragile_refits > FRAGILE:
            return f"weak: the data hardly determine {100 * self.fragile_refits:.0f}% of its refits"
        return ""


@dataclass(frozen=True)
class LengthControlledRate(Controlled):
    """A system's win rate at equal length, and the coefficients of the fit to all judgments."""

    coefficients: Coefficients

    @property
    def win_rate(self) -> Interval:
        return self.interval


def length_controlled_win_rate(
    outcomes: ArrayLike,
    length_differences: ArrayLike,
    clusters: ArrayLike,
    difficulties: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 999,
    seed: int = 0,
) -> LengthControlledRate:
    """Estimate the win rate that a system would have if its answers were as long as the baseline's.

    Without difficulties the rate is confounded where hard prompts have longer answers: use
    `length_controlled_within_prompts` for prompts whose difficulty nobody has measured.

    Args:
        outcomes: of each judgment, in [0, 1]: 1 is a win, 0.5 a tie; a judge's probability of a win will do, [n].
        length_differences: the system's answer's length less the baseline's, in any unit, [n].
        clusters: the prompt of each, [n]; both orders and all samples of a prompt are one cluster.
        difficulties: of each instruction, in any unit, [n].
        confidence, n_bootstrap, seed: of the interval, as in `mean_interval`, with the model refitted `n_bootstrap`
            times. Its bounds are NaN where there are no more clusters than coefficients.

    Raises:
        ValueError: for empty input, unequal lengths, a value that is not finite, an outcome outside [0, 1].
    """
    check_settings(confidence, n_bootstrap)
    fit = _Fit.of(outcomes, length_differences, clusters, difficulties)
    judged, size = fit.judged, len(fit.names)
    near = fit.near_separation
    interval = fit.value(confidence)
    fragile = np.array([np.nan])
    if size > judged.parameters:
        parts = [fit.refit(counts) for counts in draws_of(size, judged.size, n_bootstrap, seed)]
        rates, fragile = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        interval = fit.interval(interval, rates)
    return LengthControlledRate(interval, near, float(fragile.mean()), judged.coefficients(fit.coefficients))


def length_controlled_difference(
    a: Judgments,
    b: Judgments,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 999,
    seed: int = 0,
) -> Controlled:
    """Estimate the win rate at equal length of system A less that of system B, each against the same opponent.

    Both models are fitted again in every bootstrap sample, which draws the same prompts for both: what a prompt does to
    both alike cancels, as in `paired_difference`.

    Args:
        a, b: of each system outcomes [n], length differences [n], clusters [n] and, where they are known, difficulties
            [n], as `length_controlled_win_rate`'s; how many judgments a prompt has may differ.
        confidence, n_bootstrap, seed: of the interval. Its bounds are NaN where there are no more prompts than
            coefficients, or where nothing varies. Its n is that of both systems' judgments.

    Raises:
        ValueError: as `length_controlled_win_rate`, and where the two systems do not have the same prompts.
    """
    check_settings(confidence, n_bootstrap)
    own, other = _Fit.of(*a), _Fit.of(*b)
    if not np.array_equal(own.names, other.names):
        raise ValueError("the two systems must have the same clusters")
    estimate, size = own.rate - other.rate, len(own.names)
    n, parameters = own.judged.size + other.judged.size, max(own.judged.parameters, other.judged.parameters)
    interval, fragile = Interval(estimate, np.nan, np.nan, n, size, confidence), np.array([np.nan])
    near = own.near_separation or other.near_separation
    if size > parameters:
        draws = draws_of(size, max(own.judged.size, other.judged.size), n_bootstrap, seed)
        refits = [(*own.refit(counts), *other.refit(counts)) for counts in draws]
        rates, fragile_a, rates_b, fragile_b = (np.concatenate(columns) for columns in zip(*refits, strict=True))
        fragile = fragile_a | fragile_b
        both = (own.interval(own.value(confidence), rates), other.interval(other.value(confidence), rates_b))
        influence = own.influence() - other.influence()
        interval = refitted_difference(interval, rates - rates_b, influence, parameters, both, near)
    return Controlled(interval, near, float(fragile.mean()))


def win_rate_at_equal_length(coefficients: Coefficients, difficulties: ArrayLike = (0.0,)) -> float:
    """Return the mean over instructions of the model's win probability at Δ = 0. difficulties: [n]."""
    difficulty = np.asarray(difficulties, dtype=np.float64)
    return float(expit(coefficients.model + coefficients.difficulty * difficulty).mean())


class _Judged:
    """The judgments as a regression. A column that is the same for all is left out: the model's own says it all."""

    def __init__(self, outcomes: Floats, lengths: Floats, difficulty: Floats) -> None:
        self.outcomes = outcomes
        self.centre, self.spread = float(difficulty.mean()), float(difficulty.std())
        centred = (difficulty - self.centre) / self.spread if self.spread > 0 else np.zeros_like(difficulty)
        columns = np.stack([np.ones_like(outcomes), lengths, centred], axis=1)
        self.kept = columns.any(axis=0)
        self.design = columns[:, self.kept]
        self.at_equal_length = (columns * [1, 0, 1])[:, self.kept]
        self.size, self.parameters = self.design.shape

    def fit(self, weights: Floats, start: Floats) -> Floats:
        """weights: [B, n]; start: [k]. Gives [B, k]."""
        return fit_logistic(self.design, self.outcomes, weights, start)

    def rates(self, fitted: Floats, weights: Floats) -> Floats:
        """Win rates at equal length [B]. fitted: [B, k]; weights: [B, n]."""
        rates: Floats = (weights * expit(fitted @ self.at_equal_length.T)).sum(axis=1) / weights.sum(axis=1)
        return rates

    def fragile(self, fitted: Floats, weights: Floats) -> NDArray[np.bool_]:
        """Which fits the data hardly determine [B]."""
        found: NDArray[np.bool_] = least_information(self.design, weights, fitted) < LEAST_INFORMATION
        return found

    def influence(self, fitted: Floats) -> Floats:
        """n times the derivative of the rate with respect to each judgment's weight, [n]. fitted: [k]."""
        chance = expit(self.at_equal_length @ fitted)
        slope = (chance * (1 - chance)) @ self.at_equal_length
        through_fit = coefficient_influence(self.design, self.outcomes, fitted) @ slope
        influence: Floats = chance - chance.mean() + through_fit
        return influence

    def error(self, fitted: Floats) -> float:
        """The rate's standard error by the model's curvature. fitted: [k]."""
        chance = expit(self.at_equal_length @ fitted)
        slope = (chance * (1 - chance)) @ self.at_equal_length / self.size
        return float(np.sqrt(slope @ coefficient_covariance(self.design, fitted) @ slope))

    def coefficients(self, fitted: Floats) -> Coefficients:
        """In the units that were given. fitted: [k]."""
        own = np.zeros(3)
        own[self.kept] = fitted
        difficulty = own[2] / self.spread if self.spread > 0 else 0.0
        return Coefficients(float(own[0] - difficulty * self.centre), float(own[1]), float(difficulty))


@dataclass(frozen=True)
class _Fit:
    """A system's judgments, the prompt that each belongs to, and the fit to all of them.

    Attributes:
        names: of the prompts, [C].
        index: per judgment its prompt's place among them, [n].
        coefficients: [k].
        rate: at equal length.
    """

    judged: _Judged
    names: NDArray[Any]
    index: NDArray[np.intp]
    coefficients: Floats
    rate: float

    @classmethod
    def of(
        cls, outcomes: ArrayLike, lengths: ArrayLike, clusters: ArrayLike, difficulties: ArrayLike | None = None
    ) -> "_Fit":
        judged = _Judged(np.asarray(outcomes, dtype=np.float64), *_columns(outcomes, lengths, clusters, difficulties))
        names, index = np.unique(np.asarray(clusters), return_inverse=True)
        once = np.ones((1, judged.size))
        fitted = judged.fit(once, np.zeros(judged.parameters))
        return cls(judged, names, index, fitted[0], float(judged.rates(fitted, once)[0]))

    @property
    def near_separation(self) -> bool:
        return bool(self.judged.fragile(self.coefficients[None], np.ones((1, self.judged.size)))[0])

    def refit(self, counts: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """The rate where each prompt counts so often, and whether that fit was fragile: [rows] each.

        counts: [rows, C].
        """
        weights = counts[:, self.index]
        fitted = self.judged.fit(weights, self.coefficients)
        return self.judged.rates(fitted, weights), self.judged.fragile(fitted, weights)

    def value(self, confidence: float) -> Interval:
        """Return the rate, without bounds."""
        return Interval(self.rate, np.nan, np.nan, self.judged.size, len(self.names), confidence)

    def interval(self, value: Interval, rates: Floats) -> Interval:
        """Return the rate's interval from its refits. rates: [resamples]."""
        error = self.judged.error(self.coefficients)
        return refitted_rate(value, rates, self.influence(), self.judged.parameters, error, self.near_separation)

    def influence(self) -> Floats:
        """Return the rate's derivative by each prompt's weight, [C]; they add up to 0."""
        influence = np.bincount(self.index, weights=self.judged.influence(self.coefficients)) / self.judged.size
        centred: Floats = influence - influence.mean()
        return centred


def refitted_rate(
    value: Interval, drawn: Floats, influence: Floats, parameters: int, model_error: float, near_separation: bool
) -> Interval:
    """Return a rate with bounds: at each end the farther one of BCa and Student's t, as in `mean_interval`.

    The latter is that of the rate's log-odds, so that it stays within [0, 1]. Its standard error is the sandwich
    estimator's. A fit that the data hardly determine, and one without variation, leave hardly any residuals and make
    the sandwich far too small. There the standard error is at least that of the model with its ridge.

    Args:
        drawn: the rate of each bootstrap sample, [resamples].
        influence: the rate's derivative by each cluster's weight, [C].
        parameters: as of `bca`.
        model_error: the rate's standard error by the model's curvature.
    """
    low, high = _bca_or_none(value, drawn, influence, parameters)
    degrees = len(influence) - parameters
    error = _sandwich(influence, parameters)
    if near_separation or not varies(drawn):
        error = max(error, model_error)
    spread = max(value.estimate * (1 - value.estimate), 1e-12)  # the derivative of the rate by its log-odds
    half = float(stdtrit(degrees, (1 + value.confidence) / 2)) * error / spread
    ends = expit(logit(value.estimate) + half * np.array([-1.0, 1.0]))
    return replace(value, low=min(low, float(ends[0])), high=max(high, float(ends[1])))


def refitted_difference(
    value: Interval,
    drawn: Floats,
    influence: Floats,
    parameters: int,
    rates: tuple[Interval, Interval],
    near_separation: bool,
) -> Interval:
    """Return a difference of two rates with bounds, as `refitted_rate`.

    Where a fit is hardly determined each end is at least as far as both rates' intervals put it, by the method of
    variance estimates recovery (Zou and Donner 2008, Statistics in Medicine 27, 1693). Arguments as there, and the two
    rates with their intervals. NaN bounds where the difference does not vary: it cannot tell.
    """
    if not near_separation and not varies(drawn):
        return value
    low, high = _bca_or_none(value, drawn, influence, parameters)
    degrees = len(influence) - parameters
    half = float(stdtrit(degrees, (1 + value.confidence) / 2)) * _sandwich(influence, parameters)
    low, high = min(low, value.estimate - half), max(high, value.estimate + half)
    if near_separation:
        a, b = rates
        low = min(low, value.estimate - float(np.hypot(a.estimate - a.low, b.high - b.estimate)))
        high = max(high, value.estimate + float(np.hypot(a.high - a.estimate, b.estimate - b.low)))
    return replace(value, low=low, high=high)


def _bca_or_none(value: Interval, drawn: Floats, influence: Floats, parameters: int) -> tuple[float, float]:
    """The ends of the BCa interval; the estimate itself where the bootstrap's samples do not differ."""
    if not varies(drawn):
        return value.estimate, value.estimate
    return bca(value.estimate, drawn, influence, parameters, value.confidence)


def _sandwich(influence: Floats, parameters: int) -> float:
    size = len(influence)
    return float(np.sqrt(size / (size - parameters) * (influence**2).sum()))


def check_judgments(outcomes: ArrayLike, length_differences: ArrayLike, *others: ArrayLike) -> tuple[Floats, Floats]:
    """Return outcomes [n] and length differences [n] as arrays. Raises ValueError for what is no judgment."""
    y, delta = np.asarray(outcomes, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    if y.ndim != 1 or any(np.shape(column) != y.shape for column in (delta, *others)):
        raise ValueError("outcomes, length differences, clusters and difficulties must be lists of one length")
    if y.size == 0:
        raise ValueError("no observations")
    if not np.isfinite([y, delta]).all():
        raise ValueError("values must be finite: take missing judgments out first, and count them")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError("outcomes must be in [0, 1]")
    return y, delta


def _columns(
    outcomes: ArrayLike, length_differences: ArrayLike, clusters: ArrayLike, difficulties: ArrayLike | None
) -> tuple[Floats, Floats]:
    """Return tanh(Δ / std(Δ)) [n] and the difficulties [n], all input checked."""
    given = np.zeros(np.shape(outcomes)) if difficulties is None else difficulties
    _, delta = check_judgments(outcomes, length_differences, clusters, given)
    difficulty = np.asarray(given, dtype=np.float64)
    if not np.isfinite(difficulty).all():
        raise ValueError("values must be finite: take missing judgments out first, and count them")
    spread = float(delta.std(ddof=1)) if delta.size > 1 else 0.0
    return (np.tanh(delta / spread) if spread > 0 else np.sign(delta)), difficulty


def draws_of(size: int, judgments: int, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """Count how often each prompt was drawn, in blocks [rows, size] that add up to `n_bootstrap`."""
    rng = np.random.default_rng(seed)
    for rows in blocks(n_bootstrap, judgments):
        drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
