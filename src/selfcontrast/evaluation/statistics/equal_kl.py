"""Compare the scores of several training runs at the same KL from their common initial model.

Each run is a path from (KL 0, the fine-tuned model's score) over its checkpoints to its policy. Paths are compared
at the smallest final KL, which all of them reach. The score at this KL is interpolated linearly between the two points
around it. Paths and smallest final KL are computed anew in each bootstrap sample of prompts, so the interval includes
the noise of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from selfcontrast.evaluation.statistics.bootstrap import Interval
from selfcontrast.evaluation.statistics.clusters import Floats, blocks, check_settings


@dataclass(frozen=True)
class KLPath:
    """The path of a training run by prompt, from the fine-tuned model with KL 0. kl, scores: [points, prompts]."""

    kl: ArrayLike
    scores: ArrayLike


@dataclass(frozen=True)
class EqualKL:
    """A comparison of training runs at one KL.

    Attributes:
        kl: the KL, in nats per response.
        scores: each run's score at this KL.
        differences: each run's difference from the first, paired by prompt; 0 for the first.
    """

    kl: float
    scores: list[Interval]
    differences: list[Interval]


def at_equal_kl(paths: Sequence[KLPath], *, confidence: float, n_bootstrap: int, seed: int) -> EqualKL:
    """Compare training runs. All paths hold the same prompts in the same order.

    Intervals are percentiles of a bootstrap over prompts.

    Raises:
        ValueError: for paths of fewer than two points, of different prompts, or with numbers that are not finite.
    """
    check_settings(confidence, n_bootstrap)
    arrays = [(np.asarray(path.kl, dtype=np.float64), np.asarray(path.scores, dtype=np.float64)) for path in paths]
    prompts = arrays[0][0].shape[-1]
    for kl, scores in arrays:
        if kl.shape != scores.shape or kl.ndim != 2 or len(kl) < 2 or kl.shape[1] != prompts or prompts == 0:
            raise ValueError("a path needs two points or more, and all paths need the same prompts")
        if not (np.isfinite(kl).all() and np.isfinite(scores).all()):
            raise ValueError("values must be finite")
    common_kl, estimates = _scores(arrays, np.full((1, prompts), 1 / prompts))
    rng, replicates = np.random.default_rng(seed), []
    for rows in blocks(n_bootstrap, prompts):
        weights = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=rows) / prompts
        replicates.append(_scores(arrays, weights)[1])
    samples = np.concatenate(replicates, axis=1)

    def interval(estimate: float, values: Floats) -> Interval:
        low, high = (
            np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]) if prompts > 1 else (np.nan, np.nan)
        )
        return Interval(estimate, float(low), float(high), prompts, prompts, confidence)

    return EqualKL(
        float(common_kl[0]),
        [interval(float(estimates[i, 0]), samples[i]) for i in range(len(paths))],
        [interval(float(estimates[i, 0] - estimates[0, 0]), samples[i] - samples[0]) for i in range(len(paths))],
    )


def score_at(kl: Floats, scores: Floats, target_kl: Floats) -> Floats:
    """Return each path's score where it first reaches a KL, or its last score if it does not reach it, [n].

    kl, scores: [n, points]; target_kl: [n].
    """
    reached = kl[:, 1:] >= target_kl[:, None]
    after = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, kl.shape[1] - 1)
    rows = np.arange(len(kl))
    kl_before, kl_after = kl[rows, after - 1], kl[rows, after]
    step = np.where(kl_after > kl_before, kl_after - kl_before, 1.0)
    fraction = np.clip((target_kl - kl_before) / step, 0.0, 1.0)
    return np.asarray(scores[rows, after - 1] + fraction * (scores[rows, after] - scores[rows, after - 1]))


def _scores(arrays: Sequence[tuple[Floats, Floats]], weights: Floats) -> tuple[Floats, Floats]:
    """Return, for weights of prompts [n, prompts], the common KL [n] and the scores at it [paths, n]."""
    means = [(weights @ kl.T, weights @ scores.T) for kl, scores in arrays]
    common_kl = np.maximum(np.min([kl[:, -1] for kl, _ in means], axis=0), 0.0)
    return common_kl, np.stack([score_at(kl, scores, common_kl) for kl, scores in means])
