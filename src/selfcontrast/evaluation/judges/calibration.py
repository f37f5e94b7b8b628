"""How far a judge is to be trusted: its verdicts on pairs whose right verdict is known."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from selfcontrast.evaluation.statistics import Interval, PositionBias, mean_interval, position_bias, rate_interval


@dataclass(frozen=True)
class Agreement:
    """Attributes:
    accuracy: share of pairs with the right verdict, of both orders together; a tie against a preference is one half.
    position: what the order of the answers does.
    length: how much more than gold the judge leans to the longer answer, in [-1, 1]; None where all are as long.
    """

    accuracy: Interval
    position: PositionBias
    length: Interval | None


def agreement(
    gold: ArrayLike,
    shown: ArrayLike,
    longer: ArrayLike,
    clusters: ArrayLike,
    *,
    confidence: float,
    n_bootstrap: int,
    seed: int,
) -> Agreement:
    """Return the three figures, with intervals clustered by prompt.

    Args:
        gold: for one of the two answers of each pair, 1 where it is better, 0 where it is worse, 0.5 for neither, [n].
        shown: the judge's outcome for that answer, in [0, 1], where it stands first and where it stands second, [2, n].
        longer: by how much it is longer than the other, [n].
        clusters: the prompt, [n].
        confidence, n_bootstrap, seed: of the intervals.

    Raises:
        ValueError: as in `mean_interval` and `position_bias`.
    """
    right, (first, second) = np.asarray(gold, dtype=np.float64), np.asarray(shown, dtype=np.float64)
    position = position_bias(first, second, clusters, confidence=confidence)
    outcome = (first + second) / 2
    agreed = 1 - np.abs(np.sign(outcome - 0.5) - np.sign(right - 0.5)) / 2
    sides = np.sign(np.asarray(longer, dtype=np.float64))
    uneven = sides != 0
    leaning = ((outcome - right) * sides)[uneven]
    options: dict[str, Any] = {"confidence": confidence, "n_bootstrap": n_bootstrap, "seed": seed}
    length = mean_interval(leaning, np.asarray(clusters)[uneven], **options) if uneven.any() else None
    return Agreement(rate_interval(agreed, clusters, confidence=confidence), position, length)
