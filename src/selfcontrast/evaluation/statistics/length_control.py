"""Estimate a win rate at equal length. Judges prefer longer answers, so a raw win rate rewards length.

The model is AlpacaEval 2's (Dubois et al. 2024, arXiv 2404.04475): the log-odds of a win over the baseline are

    model + length * tanh(Δ / std(Δ)) + difficulty * d,        Δ: the answer's length minus the baseline's,

evaluated at Δ = 0 and averaged over the judgments. AlpacaEval computes its standard error from the predictions of one
fit. Here the model is refitted in every bootstrap sample of prompts. A small ridge replaces AlpacaEval's
cross-validated penalty, so that every fit is a convex problem with one solution.
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
"""Outcomes, length differences, clusters, and difficulties if known."""

LEAST_INFORMATION = 0.5
"""The information of two judgments at even odds. With less in some direction, the ridge determines a fit, not data."""

FRAGILE = 0.05
"""Above this fraction of fragile refits, an interval is reported as weak: its 2.5% quantiles may be fragile refits."""


@dataclass(frozen=True)
class Coefficients:
    """The coefficients of the log-odds of a win.

    Attributes:
        model: log-odds at equal length and difficulty 0.
        length: log-odds per unit of tanh(Δ / std(Δ)); positive if longer answers win.
        difficulty: log-odds per unit of the instruction's difficulty.
    """

    model: float
    length: float
    difficulty: float


@dataclass(frozen=True)
class ControlledRate:
    """A win rate at equal length, or the difference of two.

    Attributes:
        interval: the rate in [0, 1], or the difference. With `near_separation`, its width comes from the prior.
        near_separation: True if the data hardly determine the fit: (nearly) all wins or all losses, outcomes decided by
            length alone, or equal length differences. The rate then means little.
        fragile_refits: fraction of bootstrap refits that the data hardly determine. If it is well above 0, the interval
            means little. NaN without refits.
    """

    interval: Interval
    near_separation: bool
    fragile_refits: float

    @property
    def weakness(self) -> str:
        """A warning to show with the number; "" if the data determine it."""
        if self.near_separation:
            return "weak: the data hardly determine it"
        if self.fragile_refits > FRAGILE:
            return f"weak: the data hardly determine {100 * self.fragile_refits:.0f}% of its refits"
        return ""


@dataclass(frozen=True)
class LengthControlledRate(ControlledRate):
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
    """Estimate the win rate of a system if its answers were as long as the baseline's.

    Without difficulties the rate is confounded if hard prompts have longer answers. Use
    `length_controlled_within_prompts` for prompts of unknown difficulty.

    Args:
        outcomes: outcome of each judgment, in [0, 1]: 1 is a win, 0.5 a tie; a judge's win probability also works, [n].
        length_differences: length of the system's answer minus the baseline's, in any unit, [n].
        clusters: prompt of each judgment, [n]; both orders and all samples of a prompt are one cluster.
        difficulties: difficulty of each instruction, in any unit, [n].
        confidence, n_bootstrap, seed: as in `mean_interval`, with `n_bootstrap` refits of the model.
            The bounds are NaN unless there are more clusters than coefficients.

    Raises:
        ValueError: for empty input, unequal lengths, a value that is not finite, an outcome outside [0, 1].
    """
    check_settings(confidence, n_bootstrap)
    fit = _Fit.of(outcomes, length_differences, clusters, difficulties)
    regression, size = fit.regression, len(fit.names)
    interval = fit.value(confidence)
    fragile = np.array([np.nan])
    if size > regression.parameters:
        parts = [fit.refit(counts) for counts in draws_of(size, regression.size, n_bootstrap, seed)]
        rates, fragile = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        interval = fit.interval(interval, rates)
    coefficients = regression.coefficients(fit.coefficients)
    return LengthControlledRate(interval, fit.near_separation, float(fragile.mean()), coefficients)


def length_controlled_difference(
    a: Judgments,
    b: Judgments,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 999,
    seed: int = 0,
) -> ControlledRate:
    """Estimate the difference of two systems' win rates at equal length, a minus b, against the same opponent.

    Both models are refitted in every bootstrap sample, which has the same prompts for both. So a prompt's common effect
    on both cancels, as in `paired_difference`.

    Args:
        a, b: each system's outcomes [n], length differences [n], clusters [n] and, if known, difficulties [n], as in
            `length_controlled_win_rate`. The systems may have different numbers of judgments per prompt.
        confidence, n_bootstrap, seed: as in `mean_interval`. Bounds are NaN if there are no more prompts than
            coefficients, or if nothing varies. The interval's n counts both systems' judgments.

    Raises:
        ValueError: as in `length_controlled_win_rate`, and if the systems do not have the same prompts.
    """
    check_settings(confidence, n_bootstrap)
    fit_a, fit_b = _Fit.of(*a), _Fit.of(*b)
    if not np.array_equal(fit_a.names, fit_b.names):
        raise ValueError("the two systems must have the same clusters")
    estimate, size = fit_a.rate - fit_b.rate, len(fit_a.names)
    n, parameters = (
        fit_a.regression.size + fit_b.regression.size,
        max(fit_a.regression.parameters, fit_b.regression.parameters),
    )
    interval, fragile = Interval(estimate, np.nan, np.nan, n, size, confidence), np.array([np.nan])
    near_separation = fit_a.near_separation or fit_b.near_separation
    if size > parameters:
        draws = draws_of(size, max(fit_a.regression.size, fit_b.regression.size), n_bootstrap, seed)
        refits = [(*fit_a.refit(counts), *fit_b.refit(counts)) for counts in draws]
        rates, fragile_a, rates_b, fragile_b = (np.concatenate(columns) for columns in zip(*refits, strict=True))
        fragile = fragile_a | fragile_b
        intervals = fit_a.interval(fit_a.value(confidence), rates), fit_b.interval(fit_b.value(confidence), rates_b)
        influence = fit_a.influence() - fit_b.influence()
        interval = refitted_difference(interval, rates - rates_b, influence, parameters, intervals, near_separation)
    return ControlledRate(interval, near_separation, float(fragile.mean()))


def win_rate_at_equal_length(coefficients: Coefficients, difficulties: ArrayLike = (0.0,)) -> float:
    """Return the mean over instructions of the model's win probability at Δ = 0. difficulties: [n]."""
    difficulty = np.asarray(difficulties, dtype=np.float64)
    return float(expit(coefficients.model + coefficients.difficulty * difficulty).mean())


class _Regression:
    """The judgments as a regression.

    A column of zeros is left out. The column of difficulties is zero if they are all equal, because it is centred; the
    column of lengths is zero if all length differences are 0.
    """

    def __init__(self, outcomes: Floats, lengths: Floats, difficulty: Floats) -> None:
        self.outcomes = outcomes
        self.centre, self.spread = float(difficulty.mean()), float(difficulty.std())
        centred = (difficulty - self.centre) / self.spread if self.spread > 0 else np.zeros_like(difficulty)
        columns = np.stack([np.ones_like(outcomes), lengths, centred], axis=1)
        self.used_columns = columns.any(axis=0)
        self.design = columns[:, self.used_columns]
        self.at_equal_length = (columns * [1, 0, 1])[:, self.used_columns]
        self.size, self.parameters = self.design.shape

    def fit(self, weights: Floats, start: Floats) -> Floats:
        """Fit the coefficients [B, k]. weights: [B, n]; start: [k]."""
        return fit_logistic(self.design, self.outcomes, weights, start)

    def rates(self, fitted: Floats, weights: Floats) -> Floats:
        """Return win rates at equal length [B]. fitted: [B, k]; weights: [B, n]."""
        rates: Floats = (weights * expit(fitted @ self.at_equal_length.T)).sum(axis=1) / weights.sum(axis=1)
        return rates

    def fragile(self, fitted: Floats, weights: Floats) -> NDArray[np.bool_]:
        """Return True for each fit that the data hardly determine [B]."""
        fragile: NDArray[np.bool_] = least_information(self.design, weights, fitted) < LEAST_INFORMATION
        return fragile

    def influence(self, fitted: Floats) -> Floats:
        """Return n times the derivative of the rate by each judgment's weight, [n]. fitted: [k]."""
        probability = expit(self.at_equal_length @ fitted)
        slope = (probability * (1 - probability)) @ self.at_equal_length
        through_fit = coefficient_influence(self.design, self.outcomes, fitted) @ slope
        influence: Floats = probability - probability.mean() + through_fit
        return influence

    def error(self, fitted: Floats) -> float:
        """Return the rate's standard error from the model's curvature. fitted: [k]."""
        probability = expit(self.at_equal_length @ fitted)
        slope = (probability * (1 - probability)) @ self.at_equal_length / self.size
        return float(np.sqrt(slope @ coefficient_covariance(self.design, fitted) @ slope))

    def coefficients(self, fitted: Floats) -> Coefficients:
        """Return the coefficients in the input's units. fitted: [k]."""
        values = np.zeros(3)
        values[self.used_columns] = fitted
        difficulty = values[2] / self.spread if self.spread > 0 else 0.0
        return Coefficients(float(values[0] - difficulty * self.centre), float(values[1]), float(difficulty))


@dataclass(frozen=True)
class _Fit:
    """The fit to all judgments of a system, with C prompts.

    Attributes:
        names: the prompts, [C].
        index: index of each judgment's prompt, [n].
        coefficients: coefficients of the fit, [k].
        rate: win rate at equal length.
    """

    regression: _Regression
    names: NDArray[Any]
    index: NDArray[np.intp]
    coefficients: Floats
    rate: float

    @classmethod
    def of(
        cls, outcomes: ArrayLike, lengths: ArrayLike, clusters: ArrayLike, difficulties: ArrayLike | None = None
    ) -> "_Fit":
        columns = _columns(outcomes, lengths, clusters, difficulties)
        regression = _Regression(np.asarray(outcomes, dtype=np.float64), *columns)
        names, index = np.unique(np.asarray(clusters), return_inverse=True)
        ones = np.ones((1, regression.size))
        fitted = regression.fit(ones, np.zeros(regression.parameters))
        return cls(regression, names, index, fitted[0], float(regression.rates(fitted, ones)[0]))

    @property
    def near_separation(self) -> bool:
        return bool(self.regression.fragile(self.coefficients[None], np.ones((1, self.regression.size)))[0])

    def refit(self, counts: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Refit with prompts weighted by `counts`; return the rates, and True for each fragile fit, [rows] each.

        counts: [rows, C].
        """
        weights = counts[:, self.index]
        fitted = self.regression.fit(weights, self.coefficients)
        return self.regression.rates(fitted, weights), self.regression.fragile(fitted, weights)

    def value(self, confidence: float) -> Interval:
        """Return the rate, without bounds."""
        return Interval(self.rate, np.nan, np.nan, self.regression.size, len(self.names), confidence)

    def interval(self, value: Interval, rates: Floats) -> Interval:
        """Return the rate's interval from its refits. rates: [resamples]."""
        error = self.regression.error(self.coefficients)
        return refitted_rate(value, rates, self.influence(), self.regression.parameters, error, self.near_separation)

    def influence(self) -> Floats:
        """Return the rate's derivative by each prompt's weight, [C]. The derivatives add up to 0."""
        influence = np.bincount(self.index, weights=self.regression.influence(self.coefficients)) / self.regression.size
        centred: Floats = influence - influence.mean()
        return centred


def refitted_rate(
    value: Interval, replicates: Floats, influence: Floats, parameters: int, model_error: float, near_separation: bool
) -> Interval:
    """Return a rate with bounds: each is the outer one of BCa and Student's t, as in `mean_interval`.

    Student's t is applied to the rate's log-odds, so that the bounds stay within [0, 1]. The standard error is the
    sandwich estimate. If the data hardly determine the fit, or do not vary, there are hardly any residuals, and the
    sandwich estimate is far too small. Then the standard error is at least that of the model with its ridge.

    Args:
        replicates: the rate in each bootstrap sample, [resamples].
        influence: the rate's derivative by each cluster's weight, [C].
        parameters: as in `bca`.
        model_error: the rate's standard error from the model's curvature.
    """
    low, high = _bca_or_none(value, replicates, influence, parameters)
    degrees = len(influence) - parameters
    error = _sandwich(influence, parameters)
    if near_separation or not varies(replicates):
        error = max(error, model_error)
    spread = max(value.estimate * (1 - value.estimate), 1e-12)  # derivative of the rate by its log-odds
    half = float(stdtrit(degrees, (1 + value.confidence) / 2)) * error / spread
    ends = expit(logit(value.estimate) + half * np.array([-1.0, 1.0]))
    return replace(value, low=min(low, float(ends[0])), high=max(high, float(ends[1])))


def refitted_difference(
    value: Interval,
    replicates: Floats,
    influence: Floats,
    parameters: int,
    rates: tuple[Interval, Interval],
    near_separation: bool,
) -> Interval:
    """Return a difference of two rates with bounds, as in `refitted_rate`.

    If the data hardly determine a fit, each bound is at least as far from the estimate as the bound that follows from
    the two rates' intervals by the method of variance estimates recovery (Zou and Donner 2008, Statistics in Medicine
    27, 1693). Otherwise, bounds are NaN if the difference does not vary.

    Args:
        value, replicates, influence, parameters: as in `refitted_rate`.
        rates: the two rates with their intervals.
    """
    if not near_separation and not varies(replicates):
        return value
    low, high = _bca_or_none(value, replicates, influence, parameters)
    degrees = len(influence) - parameters
    half = float(stdtrit(degrees, (1 + value.confidence) / 2)) * _sandwich(influence, parameters)
    low, high = min(low, value.estimate - half), max(high, value.estimate + half)
    if near_separation:
        a, b = rates
        low = min(low, value.estimate - float(np.hypot(a.estimate - a.low, b.high - b.estimate)))
        high = max(high, value.estimate + float(np.hypot(a.high - a.estimate, b.estimate - b.low)))
    return replace(value, low=low, high=high)


def _bca_or_none(value: Interval, replicates: Floats, influence: Floats, parameters: int) -> tuple[float, float]:
    """Return the bounds of the BCa interval, or the estimate itself if the bootstrap samples do not differ."""
    if not varies(replicates):
        return value.estimate, value.estimate
    return bca(value.estimate, replicates, influence, parameters, value.confidence)


def _sandwich(influence: Floats, parameters: int) -> float:
    size = len(influence)
    return float(np.sqrt(size / (size - parameters) * (influence**2).sum()))


def check_judgments(outcomes: ArrayLike, length_differences: ArrayLike, *others: ArrayLike) -> tuple[Floats, Floats]:
    """Return outcomes [n] and length differences [n] as arrays. Raises ValueError if they are unusable."""
    y, delta = np.asarray(outcomes, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    if y.ndim != 1 or any(np.shape(column) != y.shape for column in (delta, *others)):
        raise ValueError("outcomes, length differences, clusters and difficulties must be lists of one length")
    if y.size == 0:
        raise ValueError("there are no observations. Give at least one.")
    if not np.isfinite([y, delta]).all():
        raise ValueError("values must be finite. Remove missing judgments first, and count them.")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError("outcomes must be in [0, 1]")
    return y, delta


def _columns(
    outcomes: ArrayLike, length_differences: ArrayLike, clusters: ArrayLike, difficulties: ArrayLike | None
) -> tuple[Floats, Floats]:
    """Check the input; return tanh(Δ / std(Δ)) [n] and the difficulties [n]."""
    difficulties = np.zeros(np.shape(outcomes)) if difficulties is None else difficulties
    _, delta = check_judgments(outcomes, length_differences, clusters, difficulties)
    difficulty = np.asarray(difficulties, dtype=np.float64)
    if not np.isfinite(difficulty).all():
        raise ValueError("values must be finite. Remove missing judgments first, and count them.")
    spread = float(delta.std(ddof=1)) if delta.size > 1 else 0.0
    return (np.tanh(delta / spread) if spread > 0 else np.sign(delta)), difficulty


def draws_of(size: int, judgments: int, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """Yield how often each prompt is drawn, in blocks [rows, size] with `n_bootstrap` rows in total."""
    rng = np.random.default_rng(seed)
    for rows in blocks(n_bootstrap, judgments):
        indices = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(indices.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
