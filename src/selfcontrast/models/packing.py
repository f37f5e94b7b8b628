"""Pack groups of one prompt, one target and K negatives into one row without padding.

    [prompt | target | negative_1 … negative_K] [prompt | target | …] …

Positions restart after the prompt for each response. So each token has the same position as in a separate row and, with
the attention of `shared_prompt`, the same context. With P prompt tokens and R tokens per response, P + (K+1)R tokens
replace the 2K(P+R) tokens of padded pairs. All functions are pure functions of token ids. B is the number of groups, K
the largest number of negatives.

If prompts are so short that sharing saves nothing, each response follows its own copy of the prompt:

    [prompt | target] [prompt | negative_1] …
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """One training example in token ids. Arrays of four bytes per token save memory if there are many groups.

    Attributes:
        id: example id.
        prompt: the rendered prompt; its last token predicts the first response token.
        target: the tokens of the target, end of turn included.
        negatives: at most K, in the order of training; none for supervised fine-tuning.
    """

    id: str
    prompt: Sequence[int]
    target: Sequence[int]
    negatives: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not (self.prompt and self.target and all(self.negatives)):
            raise ValueError(f"group {self.id}: prompt, target and negatives must each hold a token")

    @property
    def responses(self) -> list[Sequence[int]]:
        return [self.target, *self.negatives]


@dataclass(frozen=True)
class Layout:
    """The positions of prompts and responses in a packed row of T tokens, as needed by attention.

    Attributes:
        groups: per group (start, end of prompt = start of responses, end) in the row. A response with its own copy of
            the prompt is a group without sharing: all of it counts as prompt.
        lengths: tokens of every segment (prompt or response), in the row's order. Python numbers, so that reading them
            never waits for a GPU.
        longest: tokens of the longest prompt plus response; a shorter sliding window would cut it.
        segment: [T] each token's segment number. A group's prompt has the lowest number of the group.
        prompt: [T] segment number of the group's prompt.
        position: [T] position ids.
    """

    groups: tuple[tuple[int, int, int], ...]
    lengths: tuple[int, ...]
    longest: int
    segment: Tensor
    prompt: Tensor
    position: Tensor

    @property
    def sharing(self) -> tuple[tuple[int, int, int], ...]:
        """Return the groups that share a prompt among several responses."""
        return tuple(group for group in self.groups if group[1] < group[2])

    @property
    def attended(self) -> int:
        """Count the (token, attended token) pairs. Every token also attends to itself."""
        lengths, pairs = iter(self.lengths), 0
        for start, _, end in self.groups:
            prompt = next(lengths)
            pairs += prompt * (prompt + 1) // 2
            offset = start + prompt
            while offset < end:
                response = next(lengths)
                pairs += response * prompt + response * (response + 1) // 2
                offset += response
        return pairs

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """A cache for the values that attention derives from this layout: they are computed once for all layers."""
        return {}

    def to(self, device: torch.device | str) -> "Layout":
        return _move(self, device)


@dataclass(frozen=True)
class PackedGroups:
    """A micro-batch of B groups in one row of T tokens. n of them are response tokens, in the row's order.

    Attributes:
        ids: ids of the groups.
        input_ids: [1, T].
        position_ids: [1, T], restarting after the prompt for each response.
        predictors: [n] index in the row of the hidden state that predicts each response token.
        labels: [n] the response tokens.
        segments: [n] the response of each token: b * (K+1) + j, with j = 0 for the target.
        mask: [B, K] bool, True for existing negatives.
        lengths: [B, K+1] response tokens; 0 for a missing negative.
        layout: positions of prompts and responses, for attention.
    """

    ids: tuple[str, ...]
    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    labels: Tensor
    segments: Tensor
    mask: Tensor
    lengths: Tensor
    layout: Layout

    def to(self, device: torch.device | str) -> "PackedGroups":
        return replace(_move(self, device), layout=self.layout.to(device))


def sharing_bound(groups: Sequence[Group]) -> float:
    """Return (tokens with a prompt per response) / (tokens with a prompt per group): the largest gain of sharing."""
    prompts, responses = sum(len(g.prompt) for g in groups), sum(len(r) for g in groups for r in g.responses)
    return (sum(len(g.prompt) * len(g.responses) for g in groups) + responses) / (prompts + responses)


def pack(groups: Sequence[Group], sharing: bool = True) -> PackedGroups:
    """Pack all groups into one row; without `sharing` each response follows its own copy of the prompt.

    Raises:
        ValueError: if there is no group.
    """
    if not groups:
        raise ValueError("pack needs at least one group")
    parts = list(_parts(groups, sharing))
    negatives = max(len(group.negatives) for group in groups)
    lengths = torch.zeros(len(groups), negatives + 1, dtype=torch.long)
    tokens: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    segments: list[int] = []
    for row, prompt, responses in parts:
        prompt_end, response_start = len(tokens) + len(prompt) - 1, len(prompt)
        tokens += prompt
        positions += range(response_start)
        for column, response in responses:
            predictors += [prompt_end, *range(len(tokens), len(tokens) + len(response) - 1)]
            segments += [row * (negatives + 1) + column] * len(response)
            positions += range(response_start, response_start + len(response))
            tokens += response
            lengths[row, column] = len(response)
    labels = [token for group in groups for response in group.responses for token in response]
    return PackedGroups(
        ids=tuple(group.id for group in groups),
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        predictors=torch.tensor(predictors),
        labels=torch.tensor(labels),
        segments=torch.tensor(segments),
        mask=lengths[:, 1:] > 0,
        lengths=lengths,
        layout=_layout(parts, torch.tensor(positions)),
    )


def sum_per_response(values: Tensor, packed: PackedGroups) -> Tensor:
    """Sum `values` [n] over the tokens of each response, [B, K+1]; 0 for a missing negative."""
    sums = values.new_zeros(packed.lengths.numel()).index_add(0, packed.segments, values)
    return sums.view_as(packed.lengths)


_Part = tuple[int, Sequence[int], list[tuple[int, Sequence[int]]]]
"""A group's number, its prompt, and the responses that follow this prompt, each with its number in the group."""


def _parts(groups: Sequence[Group], sharing: bool) -> Iterator[_Part]:
    for row, group in enumerate(groups):
        responses = list(enumerate(group.responses))
        for part in [responses] if sharing else [[response] for response in responses]:
            yield row, group.prompt, part


def _layout(parts: Sequence[_Part], position: Tensor) -> Layout:
    # A single response needs no sharing: with its prompt it is one causal segment.
    lengths = [
        [len(prompt), *(len(r) for _, r in responses)] if len(responses) > 1 else [len(prompt) + len(responses[0][1])]
        for _, prompt, responses in parts
    ]
    ends = list(accumulate(sum(group) for group in lengths))
    flat = [length for group in lengths for length in group]
    spans = tuple((end - sum(group), end - sum(group[1:]), end) for end, group in zip(ends, lengths, strict=True))
    segment = torch.repeat_interleave(torch.tensor(flat))
    return Layout(
        groups=spans,
        lengths=tuple(flat),
        longest=int(position.max()) + 1,
        segment=segment,
        prompt=torch.cat([segment[start].expand(end - start) for start, _, end in spans]),
        position=position,
    )


_Item = TypeVar("_Item", Layout, PackedGroups)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy to a device. Copies to a GPU use pinned memory, so the host does not wait for them."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _move(item: _Item, device: torch.device | str) -> _Item:
    values: dict[str, Any] = {field.name: getattr(item, field.name) for field in fields(item)}
    moved: Any = {name: to_device(value, device) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(item, **moved)
