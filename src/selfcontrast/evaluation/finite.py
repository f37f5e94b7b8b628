"""Reject NaN and infinite values where they arise, with the id of their example."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from selfcontrast.errors import UserError


def check_finite(what: str, ids: Iterable[Any], values: Any, least: float = -np.inf, most: float = np.inf) -> None:
    """Raise `UserError` if a value is NaN, infinite, or outside [least, most]. A mean over the rest would be wrong.

    Args:
        what: description of the values, such as "the reward of the answer".
        ids: ids of the examples, [n].
        values: [n].
    """
    numbers = np.asarray(values, dtype=np.float64)
    wrong = ~np.isfinite(numbers) | (numbers < least) | (numbers > most)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        bounds = f" in [{least:g}, {most:g}]" if np.isfinite([least, most]).all() else ""
        raise UserError(
            f"{what} to example {list(ids)[first]!r} is {numbers[first]:g} ({int(wrong.sum())} of {len(numbers)} "
            f"are so). It must be a finite number{bounds}. Fix what computes it and run the same command again."
        )
