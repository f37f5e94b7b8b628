"""Estimate win rates at equal length of several systems against one opponent, for prompts of unknown difficulty.

A prompt that the opponent answers briefly is often easy, and every system's answer to it is longer in comparison. A
model without difficulty would attribute this effect to length (`length_control.py` needs known difficulties). This
module estimates difficulty jointly over all systems and samples compared with the same opponent. The log-odds that
system m wins pair i of prompt p are

    model_m + length * x_i + between * mean(x)_p + difficulty_p,        x = tanh(Δ / std(Δ)),

- `length` is a single number, since it is the judge's preference for any system's answers.
- `difficulty_p` is shrunk towards 0 by a normal prior of standard deviation `SPREAD`.
- `between` is the effect of a prompt's mean length (Mundlak 1978, Econometrica 46, 69). With it, `length` is estimated
  only within prompts. Without it, shrinkage attributes a part of the difficulty to `length`: in simulations with one
  pair per prompt from each of two systems, the rates were off by 3 to 8 points (benchmarks/RESULTS.md).

The rate is the mean over prompts of the win probability at x_i = 0, with the same weight for each judged prompt. If no
prompt has two pairs of different length, `length` is not identified, and there is no rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from selfcontrast.evaluation.statistics.bootstrap import Interval
from selfcontrast.evaluation.statistics.clusters import Floats, check_settings
from selfcontrast.evaluation.statistics.length_control import (
    LEAST_INFORMATION,
    ControlledRate,
    check_judgments,
    draws_of,
    refitted_difference,
    refitted_rate,
)
from selfcontrast.evaluation.statistics.logistic import RIDGE

SPREAD = 2.0
"""Prior standard deviation of a prompt's difficulty in log-odds. 1 and 2 give the same rates within 0.2 points."""

_STEPS, _TOLERANCE = 200, 1e-7  # tolerance in log-odds


@dataclass(frozen=True)
class OutcomePairs:
    """A system's judged pairs.

    Attributes:
        outcomes: in [0, 1]: 1 is a win, 0.5 a tie, [n].
        lengths: length of the system's answer minus the opponent's, in any unit, [n].
        prompts: label of each pair's prompt, such as a turn of a question, [n]. A prompt's pairs share a difficulty.
        clusters: label of the unit that the bootstrap draws, such as a question with all its turns, [n].
    """

    outcomes: ArrayLike
    lengths: ArrayLike
    prompts: ArrayLike
    clusters: ArrayLike


@dataclass(frozen=True)
class WithinPrompts:
    """Win rates at equal length of several systems.

    Attributes:
        rates: each system's rate.
        differences: each other system's rate minus the baseline's, paired by prompt.
        length: the judge's preference for length, in log-odds.
    """

    rates: dict[str, ControlledRate]
    differences: dict[str, ControlledRate]
    length: float


def length_controlled_within_prompts(
    systems: Mapping[str, OutcomePairs],
    baseline: str | None = None,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 999,
    seed: int = 0,
) -> WithinPrompts | None:
    """Estimate each system's win rate at equal length; None if it is not identified.

    Differences use the prompts on which both systems were judged. Without such prompts there is no difference.
    Intervals are as in `mean_interval`, with the model refitted in each of `n_bootstrap` bootstrap samples of clusters.
    Bounds are NaN if there are no more clusters than coefficients, and for a difference that does not vary.

    Raises:
        ValueError: for empty input, unequal lengths, a value that is not finite, an outcome outside [0, 1].
    """
    check_settings(confidence, n_bootstrap)
    model = _Model(systems)
    if not model.identified:
        return None
    ones = np.ones((1, model.size))
    start = model.fit(ones)
    names = list(systems)
    contrasts: list[tuple[str, str | None]] = [(name, None) for name in names]
    if baseline in names:
        base = model.judged[names.index(baseline)]
        common = [name for i, name in enumerate(names) if name != baseline and (model.judged[i] & base).any()]
        contrasts += [(name, baseline) for name in common]
    estimates = model.values(start, ones, contrasts)[0]
    is_fragile = model.fragile(start, ones)[0]
    replicates, fragile = [np.full((1, len(contrasts)), np.nan)], [np.full((1, len(names)), np.nan)]
    parameters = model.design.shape[1]
    if model.clusters > parameters:
        replicates, fragile = [], []
        for counts in draws_of(model.clusters, len(model.outcomes), n_bootstrap, seed):
            weights = counts[:, model.cluster]
            fitted = model.fit(weights, start)
            replicates.append(model.values(fitted, weights, contrasts))
            fragile.append(model.fragile(fitted, weights))
    values, fragile_refits = np.concatenate(replicates), np.concatenate(fragile)
    results: list[ControlledRate] = []
    for i, (name, other) in enumerate(contrasts):
        members = [names.index(member) for member in (name, other) if member is not None]
        n = sum(int((model.system == member).sum()) for member in members)
        judged = np.logical_and.reduce([model.judged[member] for member in members])
        size = len(np.unique(model.cluster[judged]))
        near_separation = bool(is_fragile[members].any())
        interval = Interval(float(estimates[i]), np.nan, np.nan, n, size, confidence)
        if model.clusters > parameters:
            influence, error = model.influence(start, name, other)
            if other is None:
                interval = refitted_rate(interval, values[:, i], influence, parameters, error, near_separation)
            else:
                rates = (results[members[0]].interval, results[members[1]].interval)
                interval = refitted_difference(interval, values[:, i], influence, parameters, rates, near_separation)
        fraction = float(fragile_refits[:, members].max(axis=1).mean())
        results.append(ControlledRate(interval, near_separation, fraction))
    rate_of = dict(zip(names, results, strict=False))
    differences = {name: value for (name, other), value in zip(contrasts, results, strict=True) if other is not None}
    return WithinPrompts(rate_of, differences, float(start[0][0, len(names)]))


_Fitted = tuple[Floats, Floats]
"""Coefficients [B, k] and difficulties [B, P]."""


class _Model:
    """All systems' pairs as one regression, sorted by prompt.

    Attributes:
        design: a column per system, the pair's length, its prompt's mean length, [n, k].
        system, prompt: index of each pair's system and prompt, [n].
        starts: index of each prompt's first pair, [P].
        cluster: index of each prompt's cluster, [P].
        judged: the prompts on which each system was judged, [systems, P].
    """

    def __init__(self, systems: Mapping[str, OutcomePairs]) -> None:
        pairs = list(systems.values())
        columns = [check_judgments(each.outcomes, each.lengths, each.prompts, each.clusters) for each in pairs]
        outcomes, lengths = (np.concatenate([column[i] for column in columns]) for i in (0, 1))
        prompts, clusters = (
            np.concatenate([np.asarray(values) for values in parts])
            for parts in ([each.prompts for each in pairs], [each.clusters for each in pairs])
        )
        system = np.repeat(np.arange(len(columns)), [len(column[0]) for column in columns])
        order = np.argsort(prompts, kind="stable")
        self.outcomes, self.system = outcomes[order], system[order]
        _, self.starts, self.prompt, counts = np.unique(
            prompts[order], return_index=True, return_inverse=True, return_counts=True
        )
        _, self.cluster = np.unique(clusters[order][self.starts], return_inverse=True)
        self.size, self.clusters = len(self.starts), int(self.cluster.max()) + 1
        spread = np.sqrt(np.mean([column[1].var() for column in columns]))  # within a system, on average
        x = np.tanh(lengths[order] / spread) if spread > 0 else np.sign(lengths[order])
        means = np.add.reduceat(x, self.starts) / counts
        self.between = means - means.mean()
        self.identified = bool(np.abs(x - means[self.prompt]).max() > 1e-9)
        indicator = np.eye(len(columns))[self.system]
        self.design = np.column_stack([indicator, x, self.between[self.prompt]])
        self.judged = np.zeros((len(columns), self.size), dtype=bool)
        self.judged[self.system, self.prompt] = True
        self.names = list(systems)

    def fit(self, weights: Floats, start: _Fitted | None = None) -> _Fitted:
        """Maximise the penalised likelihood with prompts weighted by `weights` [B, P].

        Use Newton's method on coefficients and difficulties together, with steps damped as in `fit_logistic`.
        """
        rows, k = len(weights), self.design.shape[1]
        fitted, difficulty = np.zeros((rows, k)), np.zeros((rows, self.size))
        if start is not None:
            fitted, difficulty = fitted + start[0], difficulty + start[1]
        active = np.arange(rows)
        for _ in range(_STEPS):
            curvature, slope, by_prompt = self._curvature((fitted[active], difficulty[active]), weights[active])
            step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
            residual, precision, mixed = by_prompt
            difficulty_step = (residual - np.einsum("bpk,bk->bp", mixed, step)) / precision
            distance = np.abs(step @ self.design.T + difficulty_step[:, self.prompt]).max(axis=1, keepdims=True)
            damping = np.divide(np.log1p(distance), distance, out=np.ones_like(distance), where=distance > 0)
            fitted[active] += step * damping
            difficulty[active] += difficulty_step * damping
            active = active[distance[:, 0] > _TOLERANCE]
            if len(active) == 0:
                return fitted, difficulty
        raise ArithmeticError(f"{len(active)} of {rows} fits of prompts' difficulties did not converge")

    def values(self, fitted: _Fitted, weights: Floats, contrasts: list[tuple[str, str | None]]) -> Floats:
        """Return rates, or differences of two, [B, contrasts]."""
        columns = []
        for name, other in contrasts:
            probabilities, judged = self._probabilities(fitted, name, other)
            counts = weights * judged
            # If a system was judged on few prompts, a bootstrap sample may contain none of them.
            columns.append((counts * probabilities).sum(axis=1) / np.maximum(counts.sum(axis=1), 1e-300))
        return np.stack(columns, axis=1)

    def fragile(self, fitted: _Fitted, weights: Floats) -> NDArray[np.bool_]:
        """Return True for systems whose coefficient and `length` the data hardly determine, [B, systems]."""
        curvature, _, _ = self._curvature(fitted, weights)
        covariance = np.linalg.inv(curvature)
        length = len(self.names)
        columns = []
        for system in range(length):
            block = covariance[:, [[system], [length]], [system, length]]
            columns.append(1 / np.linalg.eigvalsh(block)[:, -1] - RIDGE < LEAST_INFORMATION)
        return np.stack(columns, axis=1)

    def influence(self, fitted: _Fitted, name: str, other: str | None) -> tuple[Floats, float]:
        """Return the derivative of a rate or difference by each cluster's weight, [C], and its standard error.

        The derivatives add up to 0. The standard error comes from the model's curvature.
        """
        probabilities, judged = self._probabilities(fitted, name, other)
        curvature, _, (_, precision, mixed) = self._curvature(fitted, np.ones((1, self.size)))
        count = judged.sum()
        rate = (probabilities * judged).sum() / count
        gradient = np.zeros(self.design.shape[1])
        for system, sign in ((name, 1.0), (other, -1.0)):
            if system is not None:
                probability, _ = self._probabilities(fitted, system, None)
                slope = sign * (probability * (1 - probability))[0] * judged / count
                gradient[self.names.index(system)] += slope.sum()
                gradient[-1] += slope @ self.between
                gradient -= (slope / precision[0]) @ mixed[0]  # the difficulties depend on the coefficients
        residuals = self.outcomes - self._fitted_probabilities(fitted)[0]
        scores = np.add.reduceat(residuals[:, None] * self.design, self.starts)
        solution = np.linalg.solve(curvature[0], gradient)
        through_fit = scores @ solution
        by_prompt = (probabilities[0] - rate) * judged / count + through_fit
        influence = np.bincount(self.cluster, weights=by_prompt)
        return influence - influence.mean(), float(np.sqrt(gradient @ solution))

    def _probabilities(self, fitted: _Fitted, name: str, other: str | None) -> tuple[Floats, NDArray[np.bool_]]:
        """Return win probabilities at equal length, or differences of two, [B, P], and True per judged prompt [P]."""
        coefficients, difficulty = fitted
        shared = coefficients[:, -1:] * self.between + difficulty
        index = self.names.index(name)
        probabilities, judged = expit(coefficients[:, [index]] + shared), self.judged[index]
        if other is None:
            return probabilities, judged
        index = self.names.index(other)
        return probabilities - expit(coefficients[:, [index]] + shared), judged & self.judged[index]

    def _fitted_probabilities(self, fitted: _Fitted) -> Floats:
        probabilities: Floats = expit(fitted[0] @ self.design.T + fitted[1][:, self.prompt])
        return probabilities

    def _curvature(self, fitted: _Fitted, weights: Floats) -> tuple[Floats, Floats, tuple[Any, Any, Any]]:
        """Return curvature [B, k, k] and slope [B, k] of the coefficients, with the difficulties profiled out.

        The third value holds each prompt's slope [B, P], curvature [B, P], and mixed curvature [B, P, k].
        """
        probabilities = self._fitted_probabilities(fitted)
        variance, residuals = probabilities * (1 - probabilities), self.outcomes - probabilities
        columns = range(self.design.shape[1])
        precision = self._by_prompt(variance) + SPREAD**-2
        slope = self._by_prompt(residuals) - SPREAD**-2 * fitted[1]
        mixed = np.stack([self._by_prompt(variance * self.design[:, i]) for i in columns], axis=-1)
        pair_weights = weights[:, self.prompt]
        weighted = pair_weights * variance
        curvature = np.stack([weighted @ (self.design * self.design[:, [i]]) for i in columns], axis=1)
        scaled = mixed * (weights / precision)[:, :, None]
        curvature = curvature - scaled.transpose(0, 2, 1) @ mixed + RIDGE * np.eye(len(columns))
        gradient = (pair_weights * residuals) @ self.design - RIDGE * fitted[0] - np.einsum("bpk,bp->bk", scaled, slope)
        return curvature, gradient, (slope, precision, mixed)

    def _by_prompt(self, values: Floats) -> Floats:
        """Sum values [B, n] over the pairs of each prompt, [B, P]."""
        sums: Floats = np.add.reduceat(values, self.starts, axis=1)
        return sums
