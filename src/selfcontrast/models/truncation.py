"""Count the tokens that a model does not read: encoders, reward models and judges truncate long texts."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Counts = NDArray[np.int64]
"""[n, 2]: for each of n texts, its tokens (or characters), and how many of them are not read."""

MAX_UNREAD = 0.01  # fraction of tokens; a warning is logged above it


def unread(model: Any, texts: Sequence[Any]) -> Counts:
    """Return `model.unread(texts)`. A model without this method reads everything."""
    count: Callable[[Sequence[Any]], Counts] | None = getattr(model, "unread", None)
    return count(texts) if count and len(texts) else np.zeros((len(texts), 2), dtype=np.int64)


def report_unread(reader: str, counts: Counts, unit: str, remedy: str) -> dict[str, Any]:
    """Return the number of truncated texts and the unread fraction. Warn if this fraction exceeds 1%.

    If nothing is truncated, return an empty dict.
    """
    truncated = int((counts[:, 1] > 0).sum())
    if not truncated:
        return {}
    fraction = float(counts[:, 1].sum() / counts[:, 0].sum())
    if fraction > MAX_UNREAD:
        log.warning(
            "%s: %d of %d texts are truncated, and %.1f%% of all %s are not read. To read them, %s.",
            reader,
            truncated,
            len(counts),
            100 * fraction,
            unit,
            remedy,
        )
    return {"texts_cut": truncated, "unread_fraction": fraction}
