"""Compare FlexAttention with masked attention once per kernel, before the kernel is used.

torch generates FlexAttention's kernels, and some versions generate wrong ones for some sizes. If a kernel differs or
does not compile, masked attention is used, and a warning is logged.
"""

import logging
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from selfcontrast.models.attention import flex, masked
from selfcontrast.models.packing import Group, Layout, pack

# Largest relative error of output and gradients, compared with masked attention in float32.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}

log = logging.getLogger(__name__)


class KernelSpec(NamedTuple):
    """The properties that a kernel is generated for."""

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
    """Map query [1, H, T, d] to [1, T, H, d] by FlexAttention. Return None if masked attention must be used."""
    widths = query.shape[-1], value.shape[-1]
    spec = KernelSpec(query.device, query.dtype, query.shape[1], key.shape[1], *widths, window is not None)
    if not is_correct(spec):
        return None
    try:
        return flex.attend(query, key, value, layout, scale, window)
    except torch._dynamo.exc.FailOnRecompileLimitHit:
        _report_limit(spec)
        return None


@cache
def is_correct(spec: KernelSpec) -> bool:
    """Return True if output and gradients equal those of masked attention on a small row, within `TOLERANCE`."""
    try:
        error = _error(spec)
        reason = f"differs from masked attention by {error:.2g}"
    except Exception as failure:  # compilers fail in many ways
        error, reason = float("inf"), f"does not compile: {failure}".partition("\n")[0][:200]
    correct = error <= TOLERANCE.get(spec.dtype, 1e-4)
    if not correct:
        log.warning("hardware.attention: flex %s for %s. Using masked, which is slow", reason, _describe(spec))
    return correct


@cache
def _report_limit(spec: KernelSpec) -> None:
    log.warning(
        "hardware.attention: flex was compiled %d times for %s. Further shapes use masked, which is slow",
        flex.RECOMPILE_LIMIT,
        _describe(spec),
    )


def _describe(spec: KernelSpec) -> str:
    heads = f"{spec.query_heads} heads over {spec.key_heads} of {spec.query_width} dimensions"
    return f"{heads} in {str(spec.dtype).removeprefix('torch.')}{' with a sliding window' if spec.window else ''}"


def _error(spec: KernelSpec) -> float:
    """Return the largest relative error of output and gradients, without changing random states."""
    groups = [Group("a", [1] * 150, [2] * 9, [[3] * 70, [4]]), Group("b", [1] * 5, [2] * 3, [])]
    layout, generator = pack(groups).layout, torch.Generator().manual_seed(0)
    tokens, window = len(layout.segment), 40 if spec.window else None
    sizes = [
        (spec.query_heads, spec.query_width),
        (spec.key_heads, spec.query_width),
        (spec.key_heads, spec.value_width),
    ]
    inputs = [torch.randn(1, heads, tokens, width, generator=generator) for heads, width in sizes]
    grad = torch.randn(1, tokens, spec.query_heads, spec.value_width, generator=generator)
    expected = _with_gradients(inputs, grad, layout, window, torch.device("cpu"), torch.float32, by_flex=False)
    results = _with_gradients(inputs, grad, layout, window, spec.device, spec.dtype, by_flex=True)
    pairs = [(result.float().cpu(), exact) for result, exact in zip(results, expected, strict=True)]
    return max(float((result - exact).norm() / exact.norm()) for result, exact in pairs)


def _with_gradients(
    inputs: list[Tensor],
    grad: Tensor,
    layout: Layout,
    window: int | None,
    device: torch.device,
    dtype: torch.dtype,
    by_flex: bool,
) -> list[Tensor]:
    # The hooks hide tensors from gradient checkpointing, which may contain the first layer and counts saved tensors.
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False), hooks:
        leaves = [x.to(device, dtype).requires_grad_() for x in inputs]
        query, key, value = leaves
        if by_flex:
            output = flex.attend(query, key, value, layout.to(device), None, window)
        else:
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
            output = masked.attend(query, key, value, layout, None, 0.0, window)
        return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(device, dtype))]
