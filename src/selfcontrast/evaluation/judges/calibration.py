"""Measure a judge on pairs whose right verdict is known."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from selfcontrast.evaluation.statistics import Interval, PositionBias, mean_interval, position_bias, rate_interval


@dataclass(frozen=True)
class Agreement:
    """A judge's agreement with gold verdicts.

    Attributes:
        accuracy: fraction of pairs whose mean outcome over both orders agrees with gold. A pair counts half if the
            outcome is a tie and gold is not, or the reverse.
        position: the effect of the order of the answers.
        length: how much more the judge prefers the longer answer than gold does, in [-1, 1]; None if all lengths are
            equal.
    """

    accuracy: Interval
    position: PositionBias
    length: Interval | None


def agreement(
    gold: ArrayLike,
    outcomes: ArrayLike,
    longer: ArrayLike,
    clusters: ArrayLike,
    *,
    confidence: float,
    n_bootstrap: int,
    seed: int,
) -> Agreement:
    """Return accuracy, position bias and length bias, with intervals clustered by prompt.

    Args:
        gold: for one answer of each pair, 1 if it is better, 0 if it is worse, 0.5 for neither, [n].
        outcomes: the judge's outcome for that answer, in [0, 1], when shown first and when shown second, [2, n].
        longer: length of that answer minus the other's, [n].
        clusters: the prompt of each pair, [n].
        confidence, n_bootstrap, seed: settings of the intervals.

    Raises:
        ValueError: as in `mean_interval` and `position_bias`.
    """
    gold_outcome, (first, second) = np.asarray(gold, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    position = position_bias(first, second, clusters, confidence=confidence)
    outcome = (first + second) / 2
    correct = 1 - np.abs(np.sign(outcome - 0.5) - np.sign(gold_outcome - 0.5)) / 2
    sides = np.sign(np.asarray(longer, dtype=np.float64))
    uneven = sides != 0
    length_bias = ((outcome - gold_outcome) * sides)[uneven]
    options: dict[str, Any] = {"confidence": confidence, "n_bootstrap": n_bootstrap, "seed": seed}
    length = mean_interval(length_bias, np.asarray(clusters)[uneven], **options) if uneven.any() else None
    return Agreement(rate_interval(correct, clusters, confidence=confidence), position, length)
