"""Scores of several trainings at the same KL from the model that they began with.

Each training is a path from (KL 0, the fine-tuned model's score) over its checkpoints to its policy. Paths are compared
at the smallest final KL, which all of them reach: there a straight line between the two points around it is the score.
A bootstrap sample of prompts has its own paths and its own smallest final KL, so the interval holds the noise of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from selfcontrast.evaluation.statistics.bootstrap import Interval
from selfcontrast.evaluation.statistics.clusters import Floats, blocks, check_settings


@dataclass(frozen=True)
class Path:
    """A training, by prompt. kl, scores: [points, prompts], the fine-tuned model first, whose KL is 0."""

    kl: ArrayLike
    scores: ArrayLike


@dataclass(frozen=True)
class EqualKL:
    """Attributes:
    kl: where the trainings are compared, in nats per response.
    scores: of each training there.
    differences: of each training from the first, paired by prompt; 0 for the first itself.
    """

    kl: float
    scores: list[Interval]
    differences: list[Interval]


def at_equal_kl(paths: Sequence[Path], *, confidence: float, n_bootstrap: int, seed: int) -> EqualKL:
    """Compare trainings that were measured on the same prompts, in the same order.

    Intervals are percentiles of a bootstrap over prompts. Raises ValueError for paths that are no paths over the same
    prompts: of fewer than two points, of other shapes, or with numbers that are not finite.
    """
    check_settings(confidence, n_bootstrap)
    arrays = [(np.asarray(path.kl, dtype=np.float64), np.asarray(path.scores, dtype=np.float64)) for path in paths]
    prompts = arrays[0][0].shape[-1]
    for kl, scores in arrays:
        if kl.shape != scores.shape or kl.ndim != 2 or len(kl) < 2 or kl.shape[1] != prompts or prompts == 0:
            raise ValueError("a path needs two points or more, and all paths the same prompts")
        if not (np.isfinite(kl).all() and np.isfinite(scores).all()):
            raise ValueError("values must be finite")
    where, own = _scores(arrays, np.full((1, prompts), 1 / prompts))
    rng, drawn = np.random.default_rng(seed), []
    for rows in blocks(n_bootstrap, prompts):
        weights = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=rows) / prompts
        drawn.append(_scores(arrays, weights)[1])
    samples = np.concatenate(drawn, axis=1)

    def interval(estimate: float, values: Floats) -> Interval:
        low, high = (
            np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]) if prompts > 1 else (np.nan, np.nan)
        )
        return Interval(estimate, float(low), float(high), prompts, prompts, confidence)

    return EqualKL(
        float(where[0]),
        [interval(float(own[i, 0]), samples[i]) for i in range(len(paths))],
        [interval(float(own[i, 0] - own[0, 0]), samples[i] - samples[0]) for i in range(len(paths))],
    )


def score_at(kl: Floats, scores: Floats, where: Floats) -> Floats:
    """Return the scores [n] where paths first have a KL, or else their last. kl, scores: [n, points]; where: [n]."""
    reached = kl[:, 1:] >= where[:, None]
    after = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, kl.shape[1] - 1)
    rows = np.arange(len(kl))
    left, right = kl[rows, after - 1], kl[rows, after]
    share = np.clip((where - left) / np.where(right > left, right - left, 1.0), 0.0, 1.0)
    return np.asarray(scores[rows, after - 1] + share * (scores[rows, after] - scores[rows, after - 1]))


def _scores(arrays: Sequence[tuple[Floats, Floats]], weights: Floats) -> tuple[Floats, Floats]:
    """By weights of prompts [n, prompts] the common KL [n], and the scores there [paths, n]."""
    means = [(weights @ kl.T, weights @ scores.T) for kl, scores in arrays]
    where = np.maximum(np.min([kl[:, -1] for kl, _ in means], axis=0), 0.0)
    return where, np.stack([score_at(kl, scores, where) for kl, scores in means])
