"""NaN is never a number and never disappears: it is refused where it arises, with the id of its example."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from selfcontrast.errors import UserError


def check_finite(what: str, ids: Iterable[Any], values: Any, least: float = -np.inf, most: float = np.inf) -> None:
    """Raise `UserError` where a value is NaN, infinite, or outside [least, most]: a mean over the rest would be wrong.

    Args:
        what: the value is, as in "the reward of the answer".
        ids: of the examples, [n].
        values: [n].
    """
    found = np.asarray(values, dtype=np.float64)
    wrong = ~np.isfinite(found) | (found < least) | (found > most)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        bounds = f" in [{least:g}, {most:g}]" if np.isfinite([least, most]).all() else ""
        raise UserError(
            f"{what} to example {list(ids)[first]!r} is {found[first]:g} ({int(wrong.sum())} of {len(found)} are so). "
            f"It must be a finite number{bounds}: mend what computes it, and run the same command again."
        )
