"""FlexAttention: one compiled kernel over the whole packed row, which skips the blocks of it that nothing sees.

For GPUs, where `varlen` cannot run. Compiled for all lengths at once, because T changes with every pass. (A second time
or a third where the mask's blocks happen to be one, or as many as the heads: torch takes such sizes apart.) Rows are
padded to whole blocks: at other lengths the compiled backward pass asserts or returns NaN (pytorch/pytorch#153799).
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
KERNEL_OPTIONS: dict[str, int | bool] = {}  # torch's own choice: `make gpu-check` measures others
RECOMPILE_LIMIT = 32  # kernels; torch's own limit of 8 ends in attention without one


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None = None
) -> Tensor:
    """query [1, H, T, d], key and value [1, H or fewer, T, d] -> [1, T, H, d].

    Raises `FailOnRecompileLimitHit` where torch would go on without a kernel, in T x T memory.
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
    """What a padded row's tokens see of it, in blocks of 128 x 128; made once per pass, for all of its layers."""
    if ("flex", window) not in layout.memo:
        tokens, device = len(layout.segment), layout.segment.device
        padded = tokens + -tokens % BLOCK
        # Uncompiled, it would build the mask of T x T; on a CPU, where it is only tested, that is no matter.
        create = create_block_mask if device.type == "cpu" else _compiled(create_block_mask)
        layout.memo["flex", window] = create(mask(layout, window), None, None, padded, padded, device=device)
    made: BlockMask = layout.memo["flex", window]
    return made


def mask(layout: Layout, window: int | None) -> Mask:
    """Whether token q of the padded row sees token k: of its own segment or its prompt, within the window before it.

    Padding is a segment of its own, so that every token sees at least itself. Written with indices into tensors alone,
    so that neither another row nor another window is a new kernel.
    """
    tokens = len(layout.segment)
    filler = torch.arange(-tokens % BLOCK, device=layout.segment.device)
    other = torch.full_like(filler, len(layout.lengths))
    segment, prompt = torch.cat([layout.segment, other]), torch.cat([layout.prompt, other])
    position = torch.cat([layout.position, filler])
    first = torch.zeros_like(position) if window is None else position - window + 1

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        shared = (segment[k] == segment[q]) | (segment[k] == prompt[q])
        return shared & (position[k] <= position[q]) & (position[k] >= first[q])

    return sees


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    end_workers_at_exit()
    return torch.compile(function, dynamic=True)
