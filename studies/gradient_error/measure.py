"""Run the stage `theory`: measure the parts of the gradient's error, on the bandit and on a fine-tuned model.

On the model, every quantity is a mean over training prompts, estimated from their sampled responses. The stage also
measures the gradient's direction: a verifier's score is a function of the responses, so the direction in which it grows
fastest is known. The gradient's component along this direction is measured for several choices of negatives.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from selfcontrast.constrained import Count, ProperFraction, Samples, Seed, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.store import NOT_IN_KEY
from studies.gradient_error.bandit import Bandit, BanditSettings
from studies.gradient_error.components import (
    Components,
    Floats,
    components,
    jackknife,
    leave_one_out,
    pair_gradients,
    slope,
)

VERSION = 2
FILE = "theory.json"
# Choices of negatives, as the report names them.
NONE, ALL = "none: the target alone, as supervised fine-tuning", "all responses"
KEPT, WORSE = "kept by the filter", "worse than the target (oracle)"


@dataclass(frozen=True)
class GradientError:
    """Settings of the measurement. `gradient_error.yaml` explains each."""

    prompts: Annotated[Count, Field(ge=3)]
    samples: Annotated[Samples, Field(ge=2)]
    dimensions: Count | None
    negatives: Annotated[list[Count], Field(min_length=1)]
    estimates: Annotated[list[Count], Field(min_length=1)]
    draws: Annotated[Count, Field(ge=2, le=10_000_000)]
    seed: Seed
    confidence: ProperFraction = field(metadata=NOT_IN_KEY)
    bandit: BanditSettings = field()

    def __post_init__(self) -> None:
        check_numbers(self, "theory")
        if max(self.negatives) > self.samples:
            raise UserError(f"theory.negatives={self.negatives}: use values from 1 to theory.samples={self.samples}")
        if max(self.estimates) >= self.prompts:
            raise UserError(f"theory.estimates={self.estimates}: use values below theory.prompts={self.prompts}")


@dataclass(frozen=True)
class ResponseGradients:
    """Gradients and scores of a model's responses, for N prompts with M samples each.

    Attributes:
        gradients: gradients of log-probabilities, target first, [N, 1 + M, d].
        log_probs: the policy's log-probabilities, [N, 1 + M].
        reference: the reference's log-probabilities, [N, 1 + M].
        scores: the verifier's scores, target first, [N, 1 + M]; None without a verifier.
        kept: samples that the filter keeps, [N, M] bool.
        drawn: for each prompt the indices of the negatives for training, in rank order, [K] with K the pool's size.
            Empty for prompts that the filter drops. Results with the filter leave these prompts out.
        tokens: mean tokens of a prompt and of a response.
    """

    gradients: Floats
    log_probs: Floats
    reference: Floats
    scores: Floats | None
    kept: NDArray[np.bool_]
    drawn: Sequence[NDArray[np.intp]]
    tokens: tuple[float, float]


def on_bandit(settings: BanditSettings, negatives: Sequence[int]) -> dict[str, Any]:
    """Return the exact parts, and the error by formula and by simulation, of n targets against m negatives."""
    bandit = settings.build()
    parts = bandit.parts
    curves = []
    for n in settings.positives:
        for m in negatives:
            drawn = bandit.simulate(n, m, settings.replicates, settings.seed, crossed=True)
            squared = np.square(drawn - bandit.gradient).sum(axis=1) / parts.squared
            error = float(squared.std(ddof=1) / np.sqrt(len(squared)))
            formula = parts.crossed(n, m) / parts.squared
            curves.append(
                {"positives": n, "negatives": m, "formula": formula, "simulated": float(squared.mean()), "error": error}
            )
    return {
        "parts": asdict(parts),
        "worth": {str(m): parts.nested.worth(m) for m in negatives},
        "most_balanced": parts.pairs_per_target,
        "curves": curves,
        "bias": [{"left": kept, "squared": _bias(bandit, settings.good, kept)} for kept in (1.0, 0.5, 0.25, 0.0)],
    }


def _bias(bandit: Bandit, good: int, kept_fraction: float) -> float:
    """Return ||E estimate - G||^2 / ||G||^2.

    G has only bad negatives. The estimate also keeps a fraction of the good ones' probability.
    """
    is_good = np.arange(len(bandit.logits)) < good
    ideal = bandit.filtered(is_good, 0.0).gradient
    return float(np.square(bandit.filtered(is_good, kept_fraction).gradient - ideal).sum() / np.square(ideal).sum())


def on_model(settings: GradientError, measured: ResponseGradients, beta: float) -> dict[str, Any]:
    """Return the error's parts on a model, measured errors, and the gradient's slope towards higher scores."""
    pairs = pair_gradients(measured.gradients, measured.log_probs, measured.reference, beta)
    usable = [i for i, drawn in enumerate(measured.drawn) if len(drawn)]
    results: dict[str, Any] = {"tokens": list(measured.tokens), "prompts": len(pairs)}
    results["all"] = _numbers(settings, pairs, measured.tokens)
    if len(usable) > 2 and len(measured.drawn[usable[0]]) > 1:
        drawn_pairs = np.stack([pairs[i, measured.drawn[i]] for i in usable])
        results["filtered"] = _numbers(settings, drawn_pairs, measured.tokens)
    results["curves"] = _curves(settings, pairs)
    if measured.scores is not None:
        results["directions"] = _directions(settings, measured, pairs, beta)
    return results


def _numbers(settings: GradientError, pairs: Floats, tokens: tuple[float, float]) -> dict[str, Any]:
    """Return the parts and quantities derived from them, with intervals by the jackknife over prompts."""
    parts, without = components(pairs), leave_one_out(pairs)
    fraction, fractions = _fraction(parts), np.array([_fraction(p) for p in without])
    ks = [k for k in settings.negatives if k <= pairs.shape[1]]
    return {
        **asdict(parts),
        "negatives_share": [fraction, *jackknife(fraction, fractions, settings.confidence)],
        "worth": {
            str(k): [
                parts.worth(k),
                *jackknife(parts.worth(k), np.array([p.worth(k) for p in without]), settings.confidence),
            ]
            for k in ks
        },
        "most": 1 + parts.ratio,
        "best_negatives": parts.best_negatives(*tokens),
        "prompts_needed": {str(k): parts.prompts_needed(k) for k in ks},
    }


def _fraction(parts: Components) -> float:
    """Return B / (A + B), the fraction of the squared error at K = 1 that unlimited negatives remove."""
    return parts.within / (parts.between + parts.within)


def _curves(settings: GradientError, pairs: Floats) -> list[dict[str, float]]:
    """Measure the error of estimates from prompts drawn without replacement. The other prompts' mean replaces G.

    The noise of that mean, (A + B/M) / (N - n), is known and subtracted.
    """
    rng = np.random.default_rng(settings.seed)
    parts = components(pairs)
    total, samples, _ = pairs.shape
    prompt_means = pairs.mean(axis=1)
    curves = []
    for n in settings.estimates:
        for k in settings.negatives:
            squared = np.empty(settings.draws)
            for draw in range(settings.draws):
                order = rng.permutation(total)
                chosen, rest = order[:n], order[n:]
                columns = np.argsort(rng.random((n, samples)), axis=1)[:, :k]
                estimate = pairs[chosen[:, None], columns].mean(axis=(0, 1))
                squared[draw] = np.square(estimate - prompt_means[rest].mean(axis=0)).sum()
            measured = float(squared.mean()) - parts.error(total - n, samples)
            curves.append({"prompts": n, "negatives": k, "formula": parts.error(n, k), "measured": measured})
    return curves


def _directions(
    settings: GradientError, measured: ResponseGradients, pairs: Floats, beta: float
) -> list[dict[str, Any]]:
    """Return a step's slope towards higher scores, and the fraction of false negatives, for each choice of negatives.

    The score's gradient is E[(score - mean) grad log p(y|x)] over the policy's samples y. A step goes against the
    loss's gradient, so the slope is that of the negative gradient.
    """
    assert measured.scores is not None
    target, scores = measured.scores[:, :1], measured.scores[:, 1:]
    centred = scores - scores.mean(axis=1, keepdims=True)
    uphill = np.einsum("nm,nmd->nd", centred, measured.gradients[:, 1:]) / (scores.shape[1] - 1)
    choices: Mapping[str, NDArray[np.bool_]] = {
        ALL: np.ones_like(measured.kept),
        KEPT: measured.kept,
        "left out by the filter": ~measured.kept,
        WORSE: scores < target,
        "as good as the target (oracle)": scores >= target,
    }
    prompts = np.arange(len(uphill))
    rows = [_direction(settings, NONE, beta / 2 * measured.gradients[:, 0], uphill, prompts, None)]
    for name, chosen in choices.items():
        usable = np.flatnonzero(chosen.any(axis=1))
        means = np.stack([-pairs[i, chosen[i]].mean(axis=0) for i in usable]) if len(usable) else pairs[:0, 0]
        false = float((scores >= target)[chosen].mean()) if chosen.any() else math.nan
        rows.append(_direction(settings, name, means, uphill, usable, false))
    return rows


def _direction(
    settings: GradientError, name: str, step: Floats, uphill: Floats, prompts: NDArray[np.intp], false: float | None
) -> dict[str, Any]:
    """Return a row of results: the slope of these prompts' step [n, d] towards higher scores, with its interval."""
    row: dict[str, Any] = {"negatives": name, "prompts": len(prompts), "false_negatives": false}
    direction = uphill[prompts]
    value = slope(step, direction) if len(prompts) > 2 else math.nan
    if math.isnan(value):
        return {**row, "slope": None}
    without = np.array([slope(np.delete(step, i, axis=0), np.delete(direction, i, axis=0)) for i in range(len(step))])
    return {**row, "slope": [value, *jackknife(value, without, settings.confidence)]}


def measure(folder: Path, settings: GradientError, measured: ResponseGradients, beta: float) -> dict[str, Any]:
    """Write all numbers to `folder/theory.json`. Return the main ones."""
    results = {
        "bandit": on_bandit(settings.bandit, settings.negatives),
        "model": on_model(settings, measured, beta),
    }
    (folder / FILE).write_text(json.dumps(results, indent=1))
    numbers = results["model"]["all"]
    return {name: numbers[name] for name in ("negatives_share", "most", "best_negatives")}
