"""Score against KL(policy || SFT), of the fine-tuned model, of checkpoints of the training, and of the policy."""

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
    """A model on the way from the fine-tuned one to the policy.

    Attributes:
        system: its name; `step`: of preference training, counted over all rounds; 0 for the fine-tuned model.
        checkpoint: whether it is an intermediate one.
        score: at the curve's decoding; of the curve's measure.
        kl: KL(system || SFT) in nats per response, by k1; `kl_k3`: by k3, lower where the system has given up answers.
        entropy: of a response, in nats; `entropy_per_token`: over all tokens.
        tokens: of a response, the mean.
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
    """Points in the order of training; `ids` are the prompts, sorted."""

    measure: str
    decoding: str
    ids: list[str]
    points: list[CurvePoint]


def bounds_in(point: CurvePoint) -> dict[str, Bounds]:
    """The numbers of a point that have an interval, by name."""
    return {
        "score": point["score"],
        "kl": point["kl"],
        "kl_k3": point["kl_k3"],
        "entropy": point["entropy"],
        "entropy_per_token": point["entropy_per_token"],
    }


@dataclass(frozen=True)
class Measured:
    """A model of the curve.

    Attributes:
        scores: the folder of its answers.
        divergence: of their log-probabilities; None where it cannot be estimated.
    """

    system: str
    step: int
    checkpoint: bool
    scores: Path
    divergence: Path | None


def curve(measured: Sequence[Measured], settings: Evaluation) -> Curve | None:
    """Numbers of the models, the fine-tuned one first; None where no decoding gives samples of the policy itself."""
    if settings.sampled is None:
        return None
    decoding = settings.sampled.name
    options: dict[str, Any] = {
        "confidence": settings.confidence,
        "n_bootstrap": settings.n_bootstrap,
        "seed": settings.seed,
    }
    answers = read_answers({each.system: each.scores for each in measured})
    measure = measure_of(answers[measured[0].system])
    points, ids = [], list[str]()
    for each in measured:
        assert each.divergence is not None, "there is a decoding for it"
        own = dialogues(answers[each.system], decoding, measure)
        by_answer = divergence.read(each.divergence)
        prompts = own.groupby("id")["value"].mean().sort_index()
        ids = prompts.index.tolist()
        points.append(
            CurvePoint(
                system=each.system,
                step=each.step,
                checkpoint=each.checkpoint,
                score=mean_of(own, measure, options),
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
    if not values.any():  # the fine-tuned model is itself: no estimate
        return bounds_of(Interval(0.0, 0.0, 0.0, len(values), clusters.nunique(), options["confidence"]))
    return bounds_of(mean_interval(values, clusters, **options))


def _per_token(by_answer: pd.DataFrame, options: dict[str, Any]) -> Bounds:
    """All tokens weigh alike: an answer counts as many times as it has tokens."""
    tokens = by_answer["tokens"].to_numpy()
    values = -by_answer["log_prob"].to_numpy() / np.maximum(tokens, 1)
    if not tokens.any():
        return bounds_of(Interval(float("nan"), float("nan"), float("nan"), 0, 0, options["confidence"]))
    return bounds_of(mean_interval(values.repeat(tokens), by_answer["id"].to_numpy().repeat(tokens), **options))
