"""Choose the way of attention: the requested one where it can run, else the fastest one that can, with a message.

blocks   the CPU's flash kernel on blocks without a mask; exact and fast, nothing but plain attention
varlen   variable-length flash attention on a GPU, in bfloat16 or float16; nothing is compiled (on a CPU: for tests)
flex     FlexAttention on a GPU, compiled; float32 and sliding windows too
masked   a boolean mask per group; everything, slowly
auto     blocks on a CPU, varlen on a GPU
"""

import logging
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the config is checked without torch
    import torch
    from torch import Tensor

ATTENTIONS = ("auto", "blocks", "varlen", "flex", "masked")
TRAINS_ON = {"cpu": ("auto", "blocks", "masked"), "cuda": ("auto", "varlen", "flex", "masked")}

log = logging.getLogger(__name__)


class Heads(NamedTuple):
    """What a way of attention is asked to compute."""

    device: "torch.device"
    dtype: "torch.dtype"
    query_width: int
    value_width: int
    dropout: bool
    window: bool


def choose(requested: str, query: "Tensor", value: "Tensor", dropout: float, window: int | None) -> str:
    """blocks, varlen, flex or masked, for these heads [1, H, T, d]. A request that cannot run is logged once."""
    heads = Heads(query.device, query.dtype, query.shape[-1], value.shape[-1], dropout > 0, window is not None)
    return _choose(requested, heads)


@cache
def _choose(requested: str, heads: Heads) -> str:
    fastest = ("blocks",) if heads.device.type == "cpu" else ("varlen", "flex")
    wanted = fastest[0] if requested == "auto" else requested
    obstacles = {way: obstacle(way, heads) for way in (wanted, *fastest, "masked")}
    used: str = next(way for way, reason in obstacles.items() if reason is None)
    if used != wanted:
        reason = obstacles[wanted]
        log.warning("hardware.attention=%s: %s cannot run here (%s), so it is %s", requested, wanted, reason, used)
    return used


def obstacle(way: str, heads: Heads) -> str | None:
    """Why this way cannot compute that, or None where it can."""
    import torch

    device, widths = heads.device.type, (heads.query_width, heads.value_width)
    no_window = "it has no sliding window, and the model's is shorter than the rows"
    other_width = "the values' heads are of another size than the queries'"
    reasons: dict[str, dict[str, bool]] = {
        "blocks": {
            f"its kernel is the CPU's, and the model is on {device}": device != "cpu",
            "it has no attention dropout": heads.dropout,
            no_window: heads.window,
            other_width: widths[0] != widths[1],
        },
        "varlen": {
            f"its kernels are CUDA's, and the model is on {device}": device not in ("cuda", "cpu"),
            "it has no attention dropout": heads.dropout,
            no_window: heads.window,
            other_width: widths[0] != widths[1],
            **(_cuda_obstacles(heads) if device == "cuda" else {}),
        },
        "flex": {
            f"it has no backward pass on {device}": device not in ("cuda", "xpu"),
            "it has no attention dropout": heads.dropout,
            "its kernels need heads of 16 dimensions or more": min(widths) < 16,
            "its kernels have no float64": heads.dtype == torch.float64,
        },
        "masked": {},
    }
    return next((reason for reason, holds in reasons[way].items() if holds), None)


def _cuda_obstacles(heads: Heads) -> dict[str, bool]:
    """What FlashAttention's kernels lack."""
    import torch

    half = heads.dtype in (torch.bfloat16, torch.float16)
    return {
        f"its kernels compute in bfloat16 or float16, not in {str(heads.dtype).removeprefix('torch.')}": not half,
        "its kernels need heads of a multiple of 8 and at most 256 dimensions": (
            heads.query_width % 8 > 0 or heads.query_width > 256
        ),
        "its kernels need a GPU of compute capability 8.0 (Ampere) and a torch that was built with them": (
            not _has_flash(heads.device)
        ),
    }


def _has_flash(device: "torch.device") -> bool:
    import torch

    capability: tuple[int, int] = torch.cuda.get_device_capability(device)
    return torch.backends.cuda.is_flash_attention_available() and capability >= (8, 0)
