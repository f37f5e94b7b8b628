"""Attention by two calls of variable-length flash attention, merged by their log-sum-exps; the default on a GPU.

The first call is causal over the tokens of every segment (prompt or response). In the second, the responses of a group,
as one query sequence, attend to their whole prompt. The backward pass gives both calls the *merged* output and
log-sum-exp: the kernel rebuilds the probabilities as exp(score - log-sum-exp), so its gradients are its part of the
exact ones. Nothing is compiled, grouped-query heads are not repeated, and no call waits for the GPU.

The merged forward pass is one torch operation, so that selective checkpointing can keep its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from selfcontrast.models.attention import varlen_reference
from selfcontrast.models.packing import Layout, to_device

Rows = slice | Tensor
"""Tokens of the packed row: a slice if they are contiguous (no copy), else their indices, int64 [n]."""


@dataclass(frozen=True)
class Sequences:
    """Query and key sequences of one call, concatenated.

    Attributes:
        queries: cumulative lengths, int32 [S + 1], on the row's device.
        keys: cumulative lengths of the keys.
        longest_query: upper bound on the tokens of a query sequence.
        longest_key: upper bound on the tokens of a key sequence.
        causal: True if a token sees only the tokens up to its own position.
    """

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    causal: bool


@dataclass(frozen=True)
class SharedCall:
    """The second call: the responses of each group, as one sequence, attend to their prompt."""

    sequences: Sequences
    responses: Rows
    prompts: Rows


@dataclass(frozen=True)
class Plan:
    """The two calls for a packed row; `shared` is None if no group shares a prompt."""

    segments: Sequences
    shared: SharedCall | None


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None) -> Tensor:
    """Map query [1, H, T, d], key and value [1, H or fewer, T, d] to [1, T, H, d]."""
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    output: Tensor = _MergedAttention.apply(q, k, v, plan(layout), scale)  # type: ignore[no-untyped-call]
    return output[None]


def plan(layout: Layout) -> Plan:
    """Build the sequences of a row on the CPU, once for all layers; copy them without waiting for the GPU."""
    if "varlen" not in layout.memo:
        device = layout.segment.device
        segments = _sequences(layout.lengths, layout.lengths, True, device)
        layout.memo["varlen"] = Plan(segments, _sharing(layout.sharing, device) if layout.sharing else None)
    cached: Plan = layout.memo["varlen"]
    return cached


def _sharing(groups: Sequence[tuple[int, int, int]], device: torch.device) -> SharedCall:
    queries = [end - boundary for _, boundary, end in groups]
    keys = [boundary - start for start, boundary, _ in groups]
    responses = [slice(boundary, end) for _, boundary, end in groups]
    prompts = [slice(start, boundary) for start, boundary, _ in groups]
    sequences = _sequences(queries, keys, False, device)
    return SharedCall(sequences, _rows(responses, device), _rows(prompts, device))


def _sequences(queries: Sequence[int], keys: Sequence[int], causal: bool, device: torch.device) -> Sequences:
    # The bounds are at least 2: for one-token queries, FlashAttention 2 rearranges grouped heads and the log-sum-exp.
    return Sequences(_ends(queries, device), _ends(keys, device), max(2, *queries), max(2, *keys), causal)


def _ends(lengths: Sequence[int], device: torch.device) -> Tensor:
    return to_device(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)


def _rows(parts: Sequence[slice], device: torch.device) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return to_device(torch.cat([torch.arange(part.start, part.stop) for part in parts]), device)


@torch.library.custom_op("selfcontrast::merged_attention", mutates_args=())
def merged_attention(
    query: Tensor, key: Tensor, value: Tensor, tensors: list[Tensor], numbers: list[int], scale: float | None
) -> tuple[Tensor, Tensor]:
    """Map query [T, H, d], key and value [T, H or fewer, d] to output [T, H, d] and float32 log-sum-exp [H, T].

    `tensors` and `numbers` are a plan flattened by `_flatten`.
    """
    plan = _unflatten(tensors, numbers)
    output, lse = _forward(query, key, value, plan.segments, scale)
    if plan.shared is not None:
        responses, prompts = plan.shared.responses, plan.shared.prompts
        heads = _take(query, responses), _take(key, prompts), _take(value, prompts)
        prompt_output, prompt_lse = _forward(*heads, plan.shared.sequences, scale)
        self_output, self_lse = _take(output, responses), _take(lse.T, responses).T
        # The weight stays in float32: in bfloat16 it would make the error 1.5 times as large.
        weight = torch.sigmoid(prompt_lse - self_lse).T[..., None]
        mean = torch.lerp(self_output.to(weight.dtype), prompt_output.to(weight.dtype), weight)
        _put(output, responses, mean.to(output.dtype))
        _put(lse.T, responses, torch.logaddexp(self_lse, prompt_lse).T)
    return output, lse


class _MergedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None) -> Tensor:
        """Map query [T, H, d], key and value [T, H or fewer, d] to [T, H, d]."""
        output: Tensor
        output, lse = merged_attention(query, key, value, *_flatten(plan), scale)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.plan, ctx.scale = plan, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        plan, scale = ctx.plan, ctx.scale
        grad = grad.contiguous()
        totals = _backward(grad, query, key, value, output, lse, plan.segments, scale)
        if plan.shared is not None:
            responses, prompts = plan.shared.responses, plan.shared.prompts
            heads = _take(query, responses), _take(key, prompts), _take(value, prompts)
            merged = _take(output, responses), _take(lse.T, responses).T.contiguous()
            parts = _backward(_take(grad, responses), *heads, *merged, plan.shared.sequences, scale)
            for total, rows, part in zip(totals, (responses, prompts, prompts), parts, strict=True):
                _add(total, rows, part)
        return (*totals, None, None)


def _flatten(plan: Plan) -> tuple[list[Tensor], list[int]]:
    """Flatten a plan into tensors and integers, the argument types of a torch operation."""
    calls = [plan.segments] if plan.shared is None else [plan.segments, plan.shared.sequences]
    rows = [] if plan.shared is None else [plan.shared.responses, plan.shared.prompts]
    tensors = [x for call in calls for x in (call.queries, call.keys)]
    numbers = [n for call in calls for n in (call.longest_query, call.longest_key)]
    for tokens in rows:
        if isinstance(tokens, slice):
            numbers += [tokens.start, tokens.stop]
        else:
            tensors.append(tokens)
    return tensors, numbers


def _unflatten(tensors: list[Tensor], numbers: list[int]) -> Plan:
    segments = Sequences(tensors[0], tensors[1], numbers[0], numbers[1], True)
    if len(tensors) == 2:
        return Plan(segments, None)
    sequences = Sequences(tensors[2], tensors[3], numbers[2], numbers[3], False)
    rows: list[Rows] = list(tensors[4:]) or [slice(numbers[4], numbers[5]), slice(numbers[6], numbers[7])]
    return Plan(segments, SharedCall(sequences, rows[0], rows[1]))


def _take(x: Tensor, rows: Rows) -> Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def _put(x: Tensor, rows: Rows, values: Tensor) -> None:
    if isinstance(rows, slice):
        x[rows] = values
    else:
        x.index_copy_(0, rows, values)


def _add(x: Tensor, rows: Rows, values: Tensor) -> None:
    """Add values to rows. Each row occurs at most once, so the order of summation is fixed."""
    if isinstance(rows, slice):
        x[rows] += values
    else:
        x.index_copy_(0, rows, x.index_select(0, rows) + values)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Return output [T, H, d] and log-sum-exp [H, T]."""
    if not query.is_cuda:
        return varlen_reference.forward(query, key, value, sequences.queries, sequences.keys, sequences.causal, scale)
    lengths = (sequences.queries, sequences.keys, sequences.longest_query, sequences.longest_key)
    output, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, *lengths, 0.0, sequences.causal, False, scale=scale
    )
    return output, lse


def _backward(  # noqa: PLR0913  # the operation's own arguments
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    sequences: Sequences,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    if not query.is_cuda:
        return varlen_reference.backward(
            grad, query, key, value, output, lse, sequences.queries, sequences.keys, sequences.causal, scale
        )
    lengths = (sequences.queries, sequences.keys, sequences.longest_query, sequences.longest_key)
    state = torch.empty(2, dtype=torch.uint64, device=query.device)  # random state of the dropout; never read
    unused = torch.empty(0, device=query.device)
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad, query, key, value, output, lse, *lengths, 0.0, sequences.causal, state, unused, scale=scale
    )
    return grads
