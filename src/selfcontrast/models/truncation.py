"""Count the tokens that a model does not read: encoders, reward models and judges truncate long texts."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Counts = NDArray[np.int64]
"""[n, 2]: tokens (or characters) of each of n texts, and how many of them are not read."""

TOLERATED = 0.01  # fraction of unread tokens above which a warning is logged


def unread(model: Any, texts: Sequence[Any]) -> Counts:
    """Return the counts of the model's own `unread`; a model without one reads everything."""
    count: Callable[[Sequence[Any]], Counts] | None = getattr(model, "unread", None)
    return count(texts) if count and len(texts) else np.zeros((len(texts), 2), dtype=np.int64)


def report_unread(label: str, counts: Counts, unit: str, remedy: str) -> dict[str, Any]:
    """Return the number of truncated texts and the unread fraction for a summary; warn if it exceeds 1%.

    Empty if nothing is truncated.
    """
    cut = int((counts[:, 1] > 0).sum())
    if not cut:
        return {}
    fraction = float(counts[:, 1].sum() / counts[:, 0].sum())
    if fraction > TOLERATED:
        log.warning(
            "%s: %d of %d texts are truncated, and %.1f%% of all %s are not read. To read them, %s.",
            label,
            cut,
            len(counts),
            100 * fraction,
            unit,
            remedy,
        )
    return {"texts_cut": cut, "unread_fraction": fraction}
