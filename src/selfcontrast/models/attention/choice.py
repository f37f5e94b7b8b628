"""Choose the implementation of attention: the requested one if it can run, else the fastest that can, with a warning.

blocks   the CPU's flash kernel on blocks without a mask: exact and fast, for plain attention only
varlen   variable-length flash attention on a GPU, in bfloat16 or float16, not compiled (on a CPU for tests only)
flex     FlexAttention on a GPU, compiled; supports float32 and sliding windows
masked   a boolean mask per group; supports everything, slowly
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


class AttentionSpec(NamedTuple):
    """The properties of attention that decide which implementation can run."""

    device: "torch.device"
    dtype: "torch.dtype"
    query_width: int
    value_width: int
    dropout: bool
    window: bool


def choose(requested: str, query: "Tensor", value: "Tensor", dropout: float, window: int | None) -> str:
    """Return blocks, varlen, flex or masked for these heads [1, H, T, d]. A request that cannot run is logged once."""
    spec = AttentionSpec(query.device, query.dtype, query.shape[-1], value.shape[-1], dropout > 0, window is not None)
    return _choose(requested, spec)


@cache
def _choose(requested: str, spec: AttentionSpec) -> str:
    fastest = ("blocks",) if spec.device.type == "cpu" else ("varlen", "flex")
    preferred = fastest[0] if requested == "auto" else requested
    obstacles = {name: obstacle(name, spec) for name in (preferred, *fastest, "masked")}
    used: str = next(name for name, reason in obstacles.items() if reason is None)
    if used != preferred:
        reason = obstacles[preferred]
        log.warning("hardware.attention=%s: %s cannot run (%s). Using %s", requested, preferred, reason, used)
    return used


def obstacle(name: str, spec: AttentionSpec) -> str | None:
    """Return why this implementation cannot run, or None if it can."""
    import torch

    device, widths = spec.device.type, (spec.query_width, spec.value_width)
    no_window = "it has no sliding window, and the model's window is shorter than the rows"
    other_width = "value heads and query heads differ in size"
    reasons: dict[str, dict[str, bool]] = {
        "blocks": {
            f"its kernel needs a CPU, and the model is on {device}": device != "cpu",
            "it has no attention dropout": spec.dropout,
            no_window: spec.window,
            other_width: widths[0] != widths[1],
        },
        "varlen": {
            f"its kernels need CUDA, and the model is on {device}": device not in ("cuda", "cpu"),
            "it has no attention dropout": spec.dropout,
            no_window: spec.window,
            other_width: widths[0] != widths[1],
            **(_cuda_obstacles(spec) if device == "cuda" else {}),
        },
        "flex": {
            f"it has no backward pass on {device}": device not in ("cuda", "xpu"),
            "it has no attention dropout": spec.dropout,
            "its kernels need heads of 16 dimensions or more": min(widths) < 16,
            "its kernels have no float64": spec.dtype == torch.float64,
        },
        "masked": {},
    }
    return next((reason for reason, holds in reasons[name].items() if holds), None)


def _cuda_obstacles(spec: AttentionSpec) -> dict[str, bool]:
    """Return the limits of FlashAttention's kernels, and whether each applies."""
    import torch

    is_16_bit = spec.dtype in (torch.bfloat16, torch.float16)
    return {
        f"its kernels compute in bfloat16 or float16, not in {str(spec.dtype).removeprefix('torch.')}": not is_16_bit,
        "its kernels need heads whose dimension is a multiple of 8 and at most 256": (
            spec.query_width % 8 > 0 or spec.query_width > 256
        ),
        "its kernels need a GPU of compute capability 8.0 (Ampere) and a torch that was built with them": (
            not _has_flash(spec.device)
        ),
    }


def _has_flash(device: "torch.device") -> bool:
    import torch

    capability: tuple[int, int] = torch.cuda.get_device_capability(device)
    return torch.backends.cuda.is_flash_attention_available() and capability >= (8, 0)
