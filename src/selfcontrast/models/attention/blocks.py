"""Attention in blocks without a mask, by the CPU's flash kernel, which returns the log-sum-exp.

Every segment (prompt or response) attends to itself causally, in buckets of similar length. The responses of a group,
concatenated, attend to the whole prompt. The two results are merged by their log-sum-exps. The backward pass gives each
block the *merged* output and log-sum-exp: the kernel rebuilds the probabilities as exp(score - log-sum-exp), so its
gradients are this block's part of the exact ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfcontrast.models.packing import Layout

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# A segment joins a bucket if it has this fraction of its longest segment's tokens: at most a quarter is padding.
_MIN_FILL = 0.75


@dataclass(frozen=True)
class Bucket:
    """Segments (prompts or responses) of similar length, as a batch of n rows padded to L.

    Attributes:
        tokens: [n, L] index into the packed row; padding repeats a segment's last token.
        padding: [n, L] bool; None if all segments have the same length.
    """

    tokens: Tensor
    padding: Tensor | None


@dataclass(frozen=True)
class Batches:
    """The segments of a packed row of T tokens as batches without masks.

    Attributes:
        buckets: every segment is in exactly one bucket.
        slot: [T] each token's index in the flattened, concatenated buckets.
    """

    buckets: tuple[Bucket, ...]
    slot: Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None) -> Tensor:
    """Map query, key and value [1, H, T, d] to [1, T, H, d]."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    output: Tensor = _Blocks.apply(q, k, v, layout, scale)  # type: ignore[no-untyped-call]
    return output[None]


def batches(layout: Layout) -> Batches:
    """Batch the segments of a row by length; computed once for all layers."""
    if "blocks" not in layout.memo:
        layout.memo["blocks"] = Batches(*bucketed(layout.lengths))
    cached: Batches = layout.memo["blocks"]
    return cached


def bucketed(lengths: Sequence[int]) -> tuple[tuple[Bucket, ...], Tensor]:
    """Sort consecutive segments of these lengths (T tokens in total) into buckets; return them and [T] slots."""
    buckets = _buckets(lengths)
    slot = torch.empty(sum(lengths), dtype=torch.long)
    offset = 0
    for bucket in buckets:
        tokens, padding = bucket.tokens.flatten(), bucket.padding
        slots = torch.arange(offset, offset + tokens.numel())
        is_token = slice(None) if padding is None else ~padding.flatten()
        slot[tokens[is_token]] = slots[is_token]
        offset += tokens.numel()
    return buckets, slot


def _buckets(segments: Sequence[int]) -> tuple[Bucket, ...]:
    """Batch segments of similar length. `segments` has all lengths in the row's order."""
    lengths = torch.tensor(segments)
    ends = lengths.cumsum(0)
    order = lengths.argsort(descending=True, stable=True)
    buckets = []
    while order.numel():
        longest = int(lengths[order[0]])
        size = int((lengths[order] >= _MIN_FILL * longest).sum())
        members, order = order[:size].sort().values, order[size:]
        offsets, length = torch.arange(longest), lengths[members][:, None]
        tokens = (ends[members][:, None] - length) + offsets.minimum(length - 1)
        padding = offsets >= length
        buckets.append(Bucket(tokens, padding if bool(padding.any()) else None))
    return tuple(buckets)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None) -> Tensor:
        """Map query, key and value [T, H, d] to [T, H, d]."""
        outputs, sums, batched = [], [], batches(layout)
        for bucket in batched.buckets:
            blocks = [_batch(x, bucket.tokens) for x in (query, key, value)]
            output, lse = _flash(*blocks, is_causal=True, scale=scale)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
            sums.append(lse.transpose(1, 2).flatten(0, 1))
        output, lse = torch.cat(outputs)[batched.slot], torch.cat(sums)[batched.slot]
        for start, boundary, end in layout.sharing:
            prompt, responses = slice(start, boundary), slice(boundary, end)
            prompt_output, prompt_lse = _flash(
                _row(query[responses]), _row(key[prompt]), _row(value[prompt]), scale=scale
            )
            self_output, self_lse = output[responses], lse[responses]
            prompt_output, prompt_lse = prompt_output[0].transpose(0, 1), prompt_lse[0].transpose(0, 1)
            weight = torch.sigmoid(prompt_lse - self_lse)[..., None]
            self_output.lerp_(prompt_output, weight.to(self_output.dtype))
            lse[responses] = torch.logaddexp(self_lse, prompt_lse)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        layout, scale = ctx.layout, ctx.scale
        parts: list[tuple[Tensor, ...]] = []
        batched = batches(layout)
        for bucket in batched.buckets:
            blocks = [_batch(x, bucket.tokens) for x in (grad, query, key, value, output)]
            sums = lse[bucket.tokens].transpose(1, 2)
            if bucket.padding is not None:
                blocks[0].masked_fill_(bucket.padding[:, None, :, None], 0.0)
            grads = _flash_backward(*blocks, sums, 0.0, True, scale=scale)
            parts.append(tuple(x.transpose(1, 2).flatten(0, 1) for x in grads))
        totals = [torch.cat(part)[batched.slot] for part in zip(*parts, strict=True)]
        for start, boundary, end in layout.sharing:
            prompt, responses = slice(start, boundary), slice(boundary, end)
            tokens = (responses, responses, prompt, prompt, responses)
            blocks = [_row(x[t]) for x, t in zip((grad, query, key, value, output), tokens, strict=True)]
            grads = _flash_backward(*blocks, _row(lse[responses]), 0.0, False, scale=scale)
            for total, rows, part in zip(totals, (responses, prompt, prompt), grads, strict=True):
                total[rows] += part[0].transpose(0, 1)
        return (*totals, None, None)


def _batch(x: Tensor, tokens: Tensor) -> Tensor:
    """Gather [T, H, d] at [n, L] -> [n, H, L, d]."""
    return x[tokens].transpose(1, 2)


def _row(x: Tensor) -> Tensor:
    """Transpose [t, H, d] -> [1, H, t, d], or [t, H] -> [1, H, t]."""
    return x.transpose(0, 1)[None]
