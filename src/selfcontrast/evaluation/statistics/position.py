"""Measure the effect of the order of two answers on a judge that sees both orders."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selfcontrast.evaluation.statistics.bootstrap import Interval, rate_interval
from selfcontrast.evaluation.statistics.clusters import Floats


@dataclass(frozen=True)
class PositionBias:
    """A judge's position bias.

    Attributes:
        flip_rate: fraction of pairs whose verdict depends on the order: another winner, or a winner in one order and a
            tie in the other.
        first_position_share: mean outcome for the answer shown first, over both orders, ties counted as 0.5. It is 0.5
            without position bias, whichever system is better.
    """

    flip_rate: Interval
    first_position_share: Interval


def position_bias(
    shown_first: ArrayLike,
    shown_second: ArrayLike,
    clusters: ArrayLike,
    *,
    confidence: float = 0.95,
) -> PositionBias:
    """Return both measures with intervals clustered by prompt.

    Args:
        shown_first: a system's outcome in each pair with its answer shown first, in [0, 1] (1 is a win), [n].
        shown_second: its outcome in the same pairs with its answer shown second, [n].
        clusters: the prompt of each pair, [n].
        confidence: confidence level of the intervals.

    Raises:
        ValueError: as in `rate_interval`, and for an outcome outside [0, 1].
    """
    first, second = np.asarray(shown_first, dtype=np.float64), np.asarray(shown_second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"every pair needs both orders, not {first.shape} and {second.shape} outcomes")
    if not (((first >= 0) & (first <= 1)).all() and ((second >= 0) & (second <= 1)).all()):
        raise ValueError("outcomes must be in [0, 1]")
    return PositionBias(
        rate_interval(flips(first, second), clusters, confidence=confidence),
        rate_interval(favours_first(first, second), clusters, confidence=confidence),
    )


def flips(first: Floats, second: Floats) -> NDArray[np.bool_]:
    """Return True for each pair whose verdict depends on the order, [n]."""
    flipped: NDArray[np.bool_] = np.sign(first - 0.5) != np.sign(second - 0.5)
    return flipped


def favours_first(first: Floats, second: Floats) -> Floats:
    """Return each pair's mean outcome for the answer shown first, [n]."""
    return (first + (1 - second)) / 2
