"""Compare FlexAttention with the masked way once per kind of heads, before it is relied on.

Its kernels are generated, and some torch versions generate wrong ones for some sizes. A kind that differs, or does not
compile, is computed the masked way, and a message says so.
"""

import logging
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from selfcontrast.models.attention import flex, masked
from selfcontrast.models.packing import Group, Layout, pack

# Largest error relative to the masked way in float32, of output and gradients together.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What a kernel is generated for."""

    device: torch.device
    dtype: torch.dtype
    query_heads: int
    key_heads: int
    query_width: int
    value_width: int
    window: bool


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None
) -> Tensor | None:
    """Attend by FlexAttention, query [1, H, T, d] -> [1, T, H, d]; None where the masked way must do it."""
    widths = query.shape[-1], value.shape[-1]
    kind = Kind(query.device, query.dtype, query.shape[1], key.shape[1], *widths, window is not None)
    if not is_right(kind):
        return None
    try:
        return flex.attend(query, key, value, layout, scale, window)
    except torch._dynamo.exc.FailOnRecompileLimitHit:
        _report_limit(kind)
        return None


@cache
def is_right(kind: Kind) -> bool:
    """Whether output and gradients equal the masked way's on a small row."""
    try:
        error = _error(kind)
        reason = f"differs from the masked way by {error:.2g}"
    except Exception as failure:  # compilers fail in many ways
        error, reason = float("inf"), f"does not compile: {failure}".partition("\n")[0][:200]
    right = error <= TOLERANCE.get(kind.dtype, 1e-4)
    if not right:
        log.warning("hardware.attention: flex %s for %s, so it is masked, which is slow", reason, _describe(kind))
    return right


@cache
def _report_limit(kind: Kind) -> None:
    log.warning(
        "hardware.attention: flex was compiled %d times for %s; where that is not enough, it is masked, which is slow",
        flex.RECOMPILE_LIMIT,
        _describe(kind),
    )


def _describe(kind: Kind) -> str:
    heads = f"{kind.query_heads} heads over {kind.key_heads} of {kind.query_width} dimensions"
    return f"{heads} in {str(kind.dtype).removeprefix('torch.')}{' with a sliding window' if kind.window else ''}"


def _error(kind: Kind) -> float:
    """Relative distance of output and gradients; leaves random states as they were."""
    groups = [Group("a", [1] * 150, [2] * 9, [[3] * 70, [4]]), Group("b", [1] * 5, [2] * 3, [])]
    layout, draw = pack(groups).layout, torch.Generator().manual_seed(0)
    tokens, window = len(layout.segment), 40 if kind.window else None
    sizes = [
        (kind.query_heads, kind.query_width),
        (kind.key_heads, kind.query_width),
        (kind.key_heads, kind.value_width),
    ]
    inputs = [torch.randn(1, heads, tokens, width, generator=draw) for heads, width in sizes]
    grad = torch.randn(1, tokens, kind.query_heads, kind.value_width, generator=draw)
    exact = _with_gradients(inputs, grad, layout, window, torch.device("cpu"), torch.float32, by_flex=False)
    found = _with_gradients(inputs, grad, layout, window, kind.device, kind.dtype, by_flex=True)
    pairs = [(one.float().cpu(), other) for one, other in zip(found, exact, strict=True)]
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


def _with_gradients(
    inputs: list[Tensor],
    grad: Tensor,
    layout: Layout,
    window: int | None,
    device: torch.device,
    dtype: torch.dtype,
    by_flex: bool,
) -> list[Tensor]:
    # Hooks of its own: the first layer may be under gradient checkpointing, which counts what is saved.
    apart = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False), apart:
        own = [x.to(device, dtype).requires_grad_() for x in inputs]
        query, key, value = own
        if by_flex:
            output = flex.attend(query, key, value, layout.to(device), None, window)
        else:
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
            output = masked.attend(query, key, value, layout, None, 0.0, window)
        return [output.detach(), *torch.autograd.grad(output, own, grad.to(device, dtype))]
