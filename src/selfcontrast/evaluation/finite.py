"""Reject NaN and infinite values as soon as they are computed, and name their example."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from selfcontrast.errors import UserError


def check_finite(name: str, ids: Iterable[Any], values: Any, minimum: float = -np.inf, maximum: float = np.inf) -> None:
    """Raise `UserError` if a value is NaN, infinite, or outside [minimum, maximum].

    Such a value is never left out: the mean of the remaining values would be wrong.

    Args:
        name: description of the values, such as "the reward of the answer".
        ids: ids of the examples, [n].
        values: [n].
    """
    numbers = np.asarray(values, dtype=np.float64)
    wrong = ~np.isfinite(numbers) | (numbers < minimum) | (numbers > maximum)
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        bounds = f" in [{minimum:g}, {maximum:g}]" if np.isfinite([minimum, maximum]).all() else ""
        raise UserError(
            f"{name} to example {list(ids)[index]!r} is {numbers[index]:g}. {int(wrong.sum())} of {len(numbers)} "
            f"values are not finite numbers{bounds}. Remove the cause and run the same command again."
        )
