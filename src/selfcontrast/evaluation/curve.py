"""Compute the curve of score against KL(policy || SFT) over training: fine-tuned model, checkpoints, policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from selfcontrast.evaluation import divergence
from selfcontrast.evaluation.compare import Bounds, bounds_of, dialogues, mean_of, measure_of, read_answers
from selfcontrast.evaluation.evaluate import Evaluation
from selfcontrast.evaluation.statistics import Interval, mean_interval


class PerPrompt(TypedDict):
    """Means over a prompt's samples, in the order of the curve's `ids`."""

    score: list[float]
    kl: list[float]


class CurvePoint(TypedDict):
    """The numbers of one model on the curve: the fine-tuned model, a checkpoint, or the policy.

    Attributes:
        step: step of preference training, counted over all iterations; 0 for the fine-tuned model.
        checkpoint: True for an intermediate checkpoint.
        score: mean of the curve's measure, at the curve's decoding.
        kl: KL(system || SFT) in nats per response, estimated by k1.
        kl_k3: the same KL, estimated by k3. It is too low if the system no longer gives some of SFT's answers.
        entropy: entropy of a response, in nats.
        entropy_per_token: entropy per token, as a mean over all tokens.
        tokens: mean tokens of a response.
    """

    system: str
    step: int
    checkpoint: bool
    score: Bounds
    kl: Bounds
    kl_k3: Bounds
    entropy: Bounds
    entropy_per_token: Bounds
    tokens: float
    by_prompt: PerPrompt


class Curve(TypedDict):
    """The points in the order of training. `ids` are the sorted prompt ids."""

    measure: str
    decoding: str
    ids: list[str]
    points: list[CurvePoint]


def bounds_in(point: CurvePoint) -> dict[str, Bounds]:
    """Return the numbers of a point that have an interval, by name."""
    return {
        "score": point["score"],
        "kl": point["kl"],
        "kl_k3": point["kl_k3"],
        "entropy": point["entropy"],
        "entropy_per_token": point["entropy_per_token"],
    }


@dataclass(frozen=True)
class CurveModel:
    """A model of the curve.

    Attributes:
        scores: folder of the model's answers.
        divergence: folder of the answers' log-probabilities; None if the KL cannot be estimated.
    """

    system: str
    step: int
    checkpoint: bool
    scores: Path
    divergence: Path | None


def curve(models: Sequence[CurveModel], settings: Evaluation) -> Curve | None:
    """Compute the curve. `models` starts with the fine-tuned model.

    Return None if no decoding samples from the policy itself.
    """
    if settings.sampled is None:
        return None
    decoding = settings.sampled.name
    options: dict[str, Any] = {
        "confidence": settings.confidence,
        "n_bootstrap": settings.n_bootstrap,
        "seed": settings.seed,
    }
    answers = read_answers({model.system: model.scores for model in models})
    measure = measure_of(answers[models[0].system])
    points, ids = [], list[str]()
    for model in models:
        assert model.divergence is not None  # since settings.sampled exists
        scored = dialogues(answers[model.system], decoding, measure)
        by_answer = divergence.read(model.divergence)
        prompts = scored.groupby("id")["value"].mean().sort_index()
        ids = prompts.index.tolist()
        points.append(
            CurvePoint(
                system=model.system,
                step=model.step,
                checkpoint=model.checkpoint,
                score=mean_of(scored, measure, options),
                kl=_interval(by_answer["k1"], by_answer["id"], options),
                kl_k3=_interval(by_answer["k3"], by_answer["id"], options),
                entropy=_interval(-by_answer["log_prob"], by_answer["id"], options),
                entropy_per_token=_per_token(by_answer, options),
                tokens=float(by_answer["tokens"].mean()),
                by_prompt={
                    "score": prompts.round(6).tolist(),
                    "kl": by_answer.groupby("id")["k1"].mean().sort_index().round(6).tolist(),
                },
            )
        )
    return Curve(measure=measure, decoding=decoding, ids=ids, points=points)


def _interval(values: pd.Series, clusters: pd.Series, options: dict[str, Any]) -> Bounds:
    if not values.any():  # the KL of the fine-tuned model from itself is exactly 0
        return bounds_of(Interval(0.0, 0.0, 0.0, len(values), clusters.nunique(), options["confidence"]))
    return bounds_of(mean_interval(values, clusters, **options))


def _per_token(by_answer: pd.DataFrame, options: dict[str, Any]) -> Bounds:
    """Average -log p over all tokens, with the same weight for each."""
    tokens = by_answer["tokens"].to_numpy()
    values = -by_answer["log_prob"].to_numpy() / np.maximum(tokens, 1)
    if not tokens.any():
        return bounds_of(Interval(float("nan"), float("nan"), float("nan"), 0, 0, options["confidence"]))
    return bounds_of(mean_interval(values.repeat(tokens), by_answer["id"].to_numpy().repeat(tokens), **options))
