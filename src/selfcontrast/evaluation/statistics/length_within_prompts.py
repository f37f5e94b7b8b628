"""Win rates at equal length of several systems against one opponent, where nobody has measured how hard a prompt is.

A prompt on which the opponent's answer is short is often an easy one, and there an answer of any system is longer in
comparison. Without the prompt's difficulty its effect is taken for that of length (`length_control.py` needs it given).
Here it is estimated, jointly over all systems and samples that are compared with the same opponent. The log-odds that
system m wins pair i of prompt p are

    model_m + length * x_i + between * mean(x)_p + difficulty_p,        x = tanh(Δ / std(Δ)),

- `length` is one number: it is the judge's preference, whoever wrote the answers;
- `difficulty_p` is shrunken towards 0 (a normal prior of standard deviation `SPREAD`);
- `between` is what prompts with longer answers differ by (Mundlak 1978, Econometrica 46, 69). With it `length` is
  estimated within prompts alone. Without it the shrinkage leaves a part of the difficulty to `length`: in simulations
  the rates were off by 3 to 8 points (benchmarks/RESULTS.md).

The rate is the mean over prompts of the probability at x_i = 0, each prompt as often as it was judged at all. Where no
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
    Controlled,
    check_judgments,
    draws_of,
    refitted_difference,
    refitted_rate,
)
from selfcontrast.evaluation.statistics.logistic import RIDGE

SPREAD = 2.0
"""Prior standard deviation of a prompt's difficulty in log-odds. 1 and 2 give the same rates within 0.2 points."""

_STEPS, _TOLERANCE = 200, 1e-7  # of a log-odds


@dataclass(frozen=True)
class OutcomePairs:
    """A system's judged pairs.

    Attributes:
        outcomes: 1 is a win, 0.5 a tie; anything in [0, 1], [n].
        lengths: the system's answer's length less the opponent's, in any unit, [n].
        prompts: whose difficulty the pair shares, [n]: a question's turn.
        clusters: what the bootstrap draws, [n]: a question with all its turns.
    """

    outcomes: ArrayLike
    lengths: ArrayLike
    prompts: ArrayLike
    clusters: ArrayLike


@dataclass(frozen=True)
class WithinPrompts:
    """Attributes:
    rates: of each system.
    differences: each other system's rate less the baseline's, paired by prompt.
    length: the judge's preference for length, in log-odds.
    """

    rates: dict[str, Controlled]
    differences: dict[str, Controlled]
    length: float


def length_controlled_within_prompts(
    systems: Mapping[str, OutcomePairs],
    baseline: str | None = None,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 999,
    seed: int = 0,
) -> WithinPrompts | None:
    """Estimate each system's win rate at equal length; None where it is not identified.

    Differences are over the prompts that both systems were judged on; there is none where no prompt is. Intervals are
    as in `mean_interval`, with the model refitted in each of `n_bootstrap` bootstrap samples of clusters. Their bounds
    are NaN where there are no more clusters than coefficients, and a difference's where nothing varies.

    Raises:
        ValueError: for empty input, unequal lengths, a value that is not finite, an outcome outside [0, 1].
    """
    check_settings(confidence, n_bootstrap)
    model = _Model(systems)
    if not model.identified:
        return None
    once = np.ones((1, model.size))
    start = model.fit(once)
    names = list(systems)
    contrasts: list[tuple[str, str | None]] = [(name, None) for name in names]
    if baseline in names:
        base = model.judged[names.index(baseline)]
        common = [name for own, name in enumerate(names) if name != baseline and (model.judged[own] & base).any()]
        contrasts += [(name, baseline) for name in common]
    estimates = model.values(start, once, contrasts)[0]
    weak = model.fragile(start, once)[0]
    drawn, fragile = [np.full((1, len(contrasts)), np.nan)], [np.full((1, len(names)), np.nan)]
    parameters = model.design.shape[1]
    if model.clusters > parameters:
        drawn, fragile = [], []
        for counts in draws_of(model.clusters, len(model.outcomes), n_bootstrap, seed):
            weights = counts[:, model.cluster]
            fitted = model.fit(weights, start)
            drawn.append(model.values(fitted, weights, contrasts))
            fragile.append(model.fragile(fitted, weights))
    values, broken = np.concatenate(drawn), np.concatenate(fragile)
    found: list[Controlled] = []
    for at, (name, other) in enumerate(contrasts):
        members = [names.index(own) for own in (name, other) if own is not None]
        n = sum(int((model.system == member).sum()) for member in members)
        judged = np.logical_and.reduce([model.judged[member] for member in members])
        size = len(np.unique(model.cluster[judged]))
        near = bool(weak[members].any())
        interval = Interval(float(estimates[at]), np.nan, np.nan, n, size, confidence)
        if model.clusters > parameters:
            influence, error = model.influence(start, name, other)
            if other is None:
                interval = refitted_rate(interval, values[:, at], influence, parameters, error, near)
            else:
                both = (found[members[0]].interval, found[members[1]].interval)
                interval = refitted_difference(interval, values[:, at], influence, parameters, both, near)
        found.append(Controlled(interval, near, float(broken[:, members].max(axis=1).mean())))
    rates = dict(zip(names, found, strict=False))
    differences = {name: value for (name, other), value in zip(contrasts, found, strict=True) if other is not None}
    return WithinPrompts(rates, differences, float(start[0][0, len(names)]))


_Fitted = tuple[Floats, Floats]
"""Coefficients [B, k] and difficulties [B, P]."""


class _Model:
    """All systems' pairs as one regression, sorted by prompt.

    Attributes:
        design: a column per system, the pair's length, its prompt's mean length, [n, k].
        system, prompt: per pair its system's and its prompt's place, [n].
        starts: per prompt the first of its pairs, [P].
        cluster: per prompt its cluster's place, [P].
        judged: which prompts each system was judged on, [systems, P].
    """

    def __init__(self, systems: Mapping[str, OutcomePairs]) -> None:
        columns = [check_judgments(own.outcomes, own.lengths, own.prompts, own.clusters) for own in systems.values()]
        outcomes, lengths = (np.concatenate([own[at] for own in columns]) for at in (0, 1))
        prompts, clusters = (
            np.concatenate([np.asarray(values) for values in parts])
            for parts in ([own.prompts for own in systems.values()], [own.clusters for own in systems.values()])
        )
        system = np.repeat(np.arange(len(columns)), [len(own[0]) for own in columns])
        order = np.argsort(prompts, kind="stable")
        self.outcomes, self.system = outcomes[order], system[order]
        _, self.starts, self.prompt, counts = np.unique(
            prompts[order], return_index=True, return_inverse=True, return_counts=True
        )
        _, self.cluster = np.unique(clusters[order][self.starts], return_inverse=True)
        self.size, self.clusters = len(self.starts), int(self.cluster.max()) + 1
        spread = np.sqrt(np.mean([own[1].var() for own in columns]))  # of a typical system
        x = np.tanh(lengths[order] / spread) if spread > 0 else np.sign(lengths[order])
        means = np.add.reduceat(x, self.starts) / counts
        self.between = means - means.mean()
        self.identified = bool(np.abs(x - means[self.prompt]).max() > 1e-9)
        own_column = np.eye(len(columns))[self.system]
        self.design = np.column_stack([own_column, x, self.between[self.prompt]])
        self.judged = np.zeros((len(columns), self.size), dtype=bool)
        self.judged[self.system, self.prompt] = True
        self.names = list(systems)

    def fit(self, weights: Floats, start: _Fitted | None = None) -> _Fitted:
        """Maximise the penalised likelihood in which each prompt counts `weights` [B, P] times.

        Newton's method on coefficients and difficulties together, with steps shortened as in `fit_logistic`.
        """
        rows, k = len(weights), self.design.shape[1]
        fitted, difficulty = np.zeros((rows, k)), np.zeros((rows, self.size))
        if start is not None:
            fitted, difficulty = fitted + start[0], difficulty + start[1]
        active = np.arange(rows)
        for _ in range(_STEPS):
            own, own_difficulty, weigh = fitted[active], difficulty[active], weights[active]
            curvature, slope, along = self._curvature((own, own_difficulty), weigh)
            step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
            residual, precision, mixed = along
            moved = (residual - np.einsum("bpk,bk->bp", mixed, step)) / precision
            far = np.abs(step @ self.design.T + moved[:, self.prompt]).max(axis=1, keepdims=True)
            shortened = np.divide(np.log1p(far), far, out=np.ones_like(far), where=far > 0)
            fitted[active] += step * shortened
            difficulty[active] += moved * shortened
            active = active[far[:, 0] > _TOLERANCE]
            if len(active) == 0:
                return fitted, difficulty
        raise ArithmeticError(f"{len(active)} of {rows} fits of prompts' difficulties did not converge")

    def values(self, fitted: _Fitted, weights: Floats, contrasts: list[tuple[str, str | None]]) -> Floats:
        """Rates, or differences of two, [B, contrasts]."""
        found = []
        for name, other in contrasts:
            chances, judged = self._chances(fitted, name, other)
            weigh = weights * judged
            # A bootstrap sample may lack all prompts of a system that was judged on few.
            found.append((weigh * chances).sum(axis=1) / np.maximum(weigh.sum(axis=1), 1e-300))
        return np.stack(found, axis=1)

    def fragile(self, fitted: _Fitted, weights: Floats) -> NDArray[np.bool_]:
        """Tell which systems' own coefficient and length the data hardly determine, [B, systems]."""
        curvature, _, _ = self._curvature(fitted, weights)
        covariance = np.linalg.inv(curvature)
        length = len(self.names)
        found = []
        for own in range(length):
            block = covariance[:, [[own], [length]], [own, length]]
            found.append(1 / np.linalg.eigvalsh(block)[:, -1] - RIDGE < LEAST_INFORMATION)
        return np.stack(found, axis=1)

    def influence(self, fitted: _Fitted, name: str, other: str | None) -> tuple[Floats, float]:
        """Return a rate's or a difference's derivative by each cluster's weight, [C], and its standard error.

        The derivatives add up to 0. The standard error is that by the model's curvature.
        """
        chances, judged = self._chances(fitted, name, other)
        curvature, _, (_, precision, mixed) = self._curvature(fitted, np.ones((1, self.size)))
        count = judged.sum()
        rate = (chances * judged).sum() / count
        gradient = np.zeros(self.design.shape[1])
        for own, sign in ((name, 1.0), (other, -1.0)):
            if own is not None:
                chance, _ = self._chances(fitted, own, None)
                slope = sign * (chance * (1 - chance))[0] * judged / count
                at = self.names.index(own)
                gradient[at] += slope.sum()
                gradient[-1] += slope @ self.between
                gradient -= (slope / precision[0]) @ mixed[0]  # difficulties follow the coefficients
        residuals = self.outcomes - self._fitted_chances(fitted)[0]
        scores = np.add.reduceat(residuals[:, None] * self.design, self.starts)
        moving = np.linalg.solve(curvature[0], gradient)
        through_fit = scores @ moving
        moved = (chances[0] - rate) * judged / count + through_fit
        found = np.bincount(self.cluster, weights=moved)
        return found - found.mean(), float(np.sqrt(gradient @ moving))

    def _chances(self, fitted: _Fitted, name: str, other: str | None) -> tuple[Floats, NDArray[np.bool_]]:
        """Per prompt the chance of a win at equal length, or the difference of two, [B, P], and where it counts [P]."""
        coefficients, difficulty = fitted
        shared = coefficients[:, -1:] * self.between + difficulty
        at = self.names.index(name)
        chances, judged = expit(coefficients[:, [at]] + shared), self.judged[at]
        if other is None:
            return chances, judged
        at = self.names.index(other)
        return chances - expit(coefficients[:, [at]] + shared), judged & self.judged[at]

    def _fitted_chances(self, fitted: _Fitted) -> Floats:
        chances: Floats = expit(fitted[0] @ self.design.T + fitted[1][:, self.prompt])
        return chances

    def _curvature(self, fitted: _Fitted, weights: Floats) -> tuple[Floats, Floats, tuple[Any, Any, Any]]:
        """Return curvature [B, k, k] and slope [B, k] of the coefficients once the difficulties follow them.

        Beside them each prompt's slope [B, P], its curvature [B, P], and the mixed one [B, P, k].
        """
        chances = self._fitted_chances(fitted)
        each, residuals = chances * (1 - chances), self.outcomes - chances
        columns = range(self.design.shape[1])
        precision = self._by_prompt(each) + SPREAD**-2
        slope = self._by_prompt(residuals) - SPREAD**-2 * fitted[1]
        mixed = np.stack([self._by_prompt(each * self.design[:, at]) for at in columns], axis=-1)
        weigh = weights[:, self.prompt]
        weighted = weigh * each
        curvature = np.stack([weighted @ (self.design * self.design[:, [at]]) for at in columns], axis=1)
        scaled = mixed * (weights / precision)[:, :, None]
        curvature = curvature - scaled.transpose(0, 2, 1) @ mixed + RIDGE * np.eye(len(columns))
        gradient = (weigh * residuals) @ self.design - RIDGE * fitted[0] - np.einsum("bpk,bp->bk", scaled, slope)
        return curvature, gradient, (slope, precision, mixed)

    def _by_prompt(self, values: Floats) -> Floats:
        """Sum values [B, n] over the pairs of each prompt, [B, P]."""
        found: Floats = np.add.reduceat(values, self.starts, axis=1)
        return found
