"""FlexAttention: one kernel over the whole packed row, which skips the blocks of it that nothing sees; for GPUs.

Compiled for all lengths at once: T changes with every pass, and a kernel per length would cost more than training. (A
second time or a third where the mask's blocks happen to be one, or as many as the heads: torch takes such sizes apart.)
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


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None = None
) -> Tensor:
    """query [1, H, T, d], key and value [1, H or fewer, T, d] -> [1, T, H, d]."""
    output: Tensor = _compiled(flex_attention)(
        query,
        key,
        value,
        block_mask=block_mask(layout, window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2)


def block_mask(layout: Layout, window: int | None) -> BlockMask:
    """What a packed row's tokens see of it, in blocks of 128 x 128; made once per pass, for all of its layers."""
    if window not in layout.memo:
        tokens, device = len(layout.segment), layout.segment.device
        # Uncompiled, it would build the mask of T x T; on a CPU, where it is only tested, that is no matter.
        create = create_block_mask if device.type == "cpu" else _compiled(create_block_mask)
        layout.memo[window] = create(mask(layout, window), None, None, tokens, tokens, device=device)
    made: BlockMask = layout.memo[window]
    return made


def mask(layout: Layout, window: int | None) -> Mask:
    """Whether token q of the row sees token k: of its own segment or its prompt, and within the window before it.

    Written with indices into tensors alone, so that neither another row nor another window is a new kernel.
    """
    segment, prompt, position = layout.segment, layout.prompt, layout.position
    first = torch.zeros_like(position) if window is None else position - window + 1

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        shared = (segment[k] == segment[q]) | (segment[k] == prompt[q])
        return shared & (position[k] <= position[q]) & (position[k] >= first[q])

    return sees


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    end_workers_at_exit()
    return torch.compile(function, dynamic=True)
