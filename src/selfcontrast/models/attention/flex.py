"""FlexAttention: one compiled kernel over the whole packed row, which skips fully masked blocks.

It is for GPUs on which `varlen` cannot run. It is compiled for dynamic lengths, because T changes with each row.
torch compiles it again if the number of mask blocks is one or equals the number of heads. Rows are padded to whole
blocks: at other lengths the compiled backward pass asserts or returns NaN (pytorch/pytorch#153799).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from selfcontrast.compilation import end_workers_at_exit
from selfcontrast.models.packing import Layout

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

BLOCK = 128  # tokens
KERNEL_OPTIONS: dict[str, int | bool] = {}  # empty: torch's defaults. `make gpu-check` measures others
RECOMPILE_LIMIT = 32  # number of kernels; above its default of 8, torch would silently run without a kernel


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None = None
) -> Tensor:
    """Map query [1, H, T, d], key and value [1, H or fewer, T, d] to [1, T, H, d].

    Raises:
        FailOnRecompileLimitHit: if a further kernel would be needed. Without a kernel, torch would use T x T memory.
    """
    tokens = query.shape[2]
    q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, -tokens % BLOCK)) for x in (query, key, value))
    grouped, blocks = query.shape[1] != key.shape[1], block_mask(layout, window)
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True):
        output: Tensor = _compiled(flex_attention)(
            q, k, v, block_mask=blocks, scale=scale, enable_gqa=grouped, kernel_options=KERNEL_OPTIONS or None
        )
    return output[:, :, :tokens].transpose(1, 2)


def block_mask(layout: Layout, window: int | None) -> BlockMask:
    """Return the mask of a padded row in blocks of 128 x 128; built once per micro-batch, for all layers."""
    if ("flex", window) not in layout.memo:
        tokens, device = len(layout.segment), layout.segment.device
        padded = tokens + -tokens % BLOCK
        # The uncompiled function builds a mask of T x T, which is acceptable in tests on a CPU.
        create = create_block_mask if device.type == "cpu" else _compiled(create_block_mask)
        layout.memo["flex", window] = create(mask(layout, window), None, None, padded, padded, device=device)
    cached: BlockMask = layout.memo["flex", window]
    return cached


def mask(layout: Layout, window: int | None) -> Mask:
    """Return a function that tells whether token q of the padded row sees token k.

    A token sees its own segment and its prompt, up to the window. Padding is a separate segment, so every token sees at
    least itself. The function only indexes tensors, so that other rows and windows reuse the kernel.
    """
    tokens = len(layout.segment)
    filler = torch.arange(-tokens % BLOCK, device=layout.segment.device)
    padding_segment = torch.full_like(filler, len(layout.lengths))
    segment, prompt = torch.cat([layout.segment, padding_segment]), torch.cat([layout.prompt, padding_segment])
    position = torch.cat([layout.position, filler])
    first_visible = torch.zeros_like(position) if window is None else position - window + 1

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        shared = (segment[k] == segment[q]) | (segment[k] == prompt[q])
        return shared & (position[k] <= position[q]) & (position[k] >= first_visible[q])

    return sees


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    end_workers_at_exit()
    return torch.compile(function, dynamic=True)
