"""Which way of attention runs: the one that was asked for where it can, the fastest that can elsewhere, and a message.

blocks   the CPU's flash kernel on blocks without a mask; exact and fast, nothing but plain attention
flex     FlexAttention; GPUs, sliding windows too
masked   a boolean mask per group; everything, slowly
auto     blocks on a CPU, flex on a GPU
"""

import logging
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the config is checked without torch
    from torch import Tensor

ATTENTIONS = ("auto", "blocks", "flex", "masked")

log = logging.getLogger(__name__)


def choose(asked: str, query: "Tensor", value: "Tensor", dropout: float, window: int | None) -> str:
    """blocks, flex or masked, for these heads [1, H, T, d]. What was asked for and cannot run is logged once."""
    own = "blocks" if query.device.type == "cpu" else "flex"
    wanted = own if asked == "auto" else asked
    obstacles = {way: obstacle(way, query, value, dropout, window) for way in (wanted, own, "masked")}
    used = next(way for way, reason in obstacles.items() if reason is None)
    if used != wanted:
        _report(asked, wanted, str(obstacles[wanted]), used)
    return used


def obstacle(way: str, query: "Tensor", value: "Tensor", dropout: float, window: int | None) -> str | None:
    """Why this way cannot compute that, or None where it can."""
    import torch

    device = query.device.type
    reasons: dict[str, dict[str, bool]] = {
        "blocks": {
            f"its kernel is the CPU's, and the model is on {device}": device != "cpu",
            "it has no attention dropout": dropout > 0,
            "it has no sliding window, and the model's is shorter than the rows": window is not None,
            "the values' heads are of another size than the queries'": query.shape[-1] != value.shape[-1],
        },
        "flex": {
            f"it has no backward pass on {device}": device not in ("cuda", "xpu"),
            "it has no attention dropout": dropout > 0,
            "its kernels need heads of 16 dimensions or more": min(query.shape[-1], value.shape[-1]) < 16,
            "its kernels have no float64": query.dtype == torch.float64,
        },
        "masked": {},
    }
    return next((reason for reason, holds in reasons[way].items() if holds), None)


@cache
def _report(asked: str, wanted: str, reason: str, used: str) -> None:
    log.warning("hardware.attention=%s: %s cannot run here (%s), so it is %s", asked, wanted, reason, used)
