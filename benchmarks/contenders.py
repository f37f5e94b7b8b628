"""Build the contenders: the compared methods of training on K negatives. They take turns on one model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from workload import Work, packed_work, pairs_work, rows_work

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack, to_device
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.objectives import SelfContrast
from selfcontrast.training.fit import compile_layers

Batch = Sequence[Group]
"""Groups that are computed together."""

BETA = 0.1
OBJECTIVE = SelfContrast(
    beta=BETA, label_smoothing=0.0, nll_weight=0.0, length_normalised=False, rank_weights=None
)  # the paper's objective


@dataclass
class Contender:
    """A compared method of training.

    Attributes:
        model: the model that it trains. All contenders share one, except compiled contenders.
        attention: transformers' name of the attention, set before this contender's turn.
        step: runs forward and backward pass of the i-th batch, which leaves gradients on the model.
        work: tokens and attended pairs of all batches.
    """

    name: str
    model: Any
    attention: str
    step: Callable[[int], None]
    work: Work

    def take_turn(self) -> None:
        if self.model.config._attn_implementation != self.attention:
            self.model.set_attn_implementation(self.attention)
        self.model.zero_grad()


def ours(
    model: Any, batches: Sequence[Batch], chunk_size: int, attention: str, compiled: bool = False, name: str = "ours"
) -> Contender:
    """Compute each batch as one packed row."""
    use_shared_prompt(model, attention)
    if compiled:
        compile_layers(model)
    with torch.no_grad():
        references = [response_log_probs(model, pack(batch).to(model.device), chunk_size) for batch in batches]

    def step(i: int) -> None:
        p = pack(batches[i]).to(model.device)  # packing is part of the step
        log_probs = response_log_probs(model, p, chunk_size)
        torch.autograd.backward(OBJECTIVE(log_probs, references[i], p.lengths, p.mask).loss.sum())

    return Contender(name, model, model.config._attn_implementation, step, packed_work(flat(batches)))


def rows(model: Any, batches: Sequence[Batch], chunk_size: int, attention: str, budget: int) -> Contender:
    """Compute each response with its own copy of the prompt, without padding, in one causal call.

    This is what a careful trainer does. It is computed by this package's code on groups of one response, which share
    no prompt. A micro-batch holds complete groups within `budget` tokens, unless one group is larger. All groups must
    have the same number of negatives.
    """
    use_shared_prompt(model, attention)
    parts = [within(batch, budget, lambda g: rows_work([g]).tokens) for batch in batches]

    def log_probs(groups: Batch) -> Tensor:
        """Return log-probabilities [B, K+1]."""
        single = [Group("", g.prompt, response, []) for g in groups for response in g.responses]
        packed = pack(single).to(model.device)
        return response_log_probs(model, packed, chunk_size)[:, 0].view(len(groups), -1)

    with torch.no_grad():
        references = [[log_probs(part) for part in batch] for batch in parts]

    def step(i: int) -> None:
        for part, reference in zip(parts[i], references[i], strict=True):
            values = log_probs(part)
            lengths = to_device(torch.tensor([[len(r) for r in g.responses] for g in part]), values.device)
            torch.autograd.backward(OBJECTIVE(values, reference, lengths, lengths[:, 1:] > 0).loss.sum())

    return Contender("unpadded rows", model, model.config._attn_implementation, step, rows_work(flat(batches)))


def pairs(model: Any, batches: Sequence[Batch], lean: bool, budget: int) -> Contender:
    """Compute 2K padded rows per group. Equally long prompts share a micro-batch, within `budget` tokens."""
    model.set_attn_implementation("sdpa")
    by_length = [[list(part) for _, part in groupby(batch, lambda g: len(g.prompt))] for batch in batches]
    parts = [[part for groups in batch for part in within(groups, budget, padded_tokens)] for batch in by_length]
    inputs = [[_Padded.of(part, model.device) for part in batch] for batch in parts]

    def log_probs(rows: _Padded) -> Tensor:
        """Return log-probabilities [pairs, 2]."""
        ids, attended, prompt = rows.ids, rows.attended, rows.prompt
        if lean:
            hidden = model.model(input_ids=ids, attention_mask=attended, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, prompt - 1 : -1])
        else:
            logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, prompt - 1 : -1]
        tokens: Tensor = logits.float().log_softmax(-1).gather(-1, ids[:, prompt:, None])[..., 0]
        return (tokens * attended[:, prompt:]).sum(-1).view(-1, 2)

    with torch.no_grad():
        references = [[log_probs(rows) for rows in batch] for batch in inputs]

    def step(i: int) -> None:
        for rows, reference in zip(inputs[i], references[i], strict=True):
            rewards = BETA * (log_probs(rows) - reference)
            losses = -torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1])
            torch.autograd.backward((losses * rows.weights).sum())

    work = pairs_work(flat(batches), every_position=not lean)
    return Contender("lean pairs" if lean else "pairs", model, "sdpa", step, work)


@dataclass
class _Padded:
    """Rows of prompt and response, padded on the right. Rows of targets and of negatives alternate.

    Attributes:
        ids, attended: [rows, longest].
        prompt: number of prompt tokens, equal in all rows.
        weights: 1 / K of each pair's group, [pairs], because a group's loss is the mean over its negatives.
    """

    ids: Tensor
    attended: Tensor
    prompt: int
    weights: Tensor

    @classmethod
    def of(cls, groups: Batch, device: torch.device) -> "_Padded":
        rows = [[*g.prompt, *response] for g in groups for n in g.negatives for response in (g.target, n)]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        attended = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], attended[i, : len(row)] = torch.tensor(row), 1
        weights = torch.tensor([1 / len(g.negatives) for g in groups for _ in g.negatives])
        return cls(ids.to(device), attended.to(device), len(groups[0].prompt), weights.to(device))


def padded_tokens(group: Group) -> int:
    return 2 * len(group.negatives) * (len(group.prompt) + max(map(len, group.responses)))


def within(groups: Batch, budget: int, tokens: Callable[[Group], int]) -> list[list[Group]]:
    """Split consecutive groups into parts within `budget` tokens, unless one group is larger."""
    parts: list[list[Group]] = []
    tokens_in_part = budget
    for group in groups:
        if tokens_in_part + tokens(group) > budget:
            parts.append([])
            tokens_in_part = 0
        parts[-1].append(group)
        tokens_in_part += tokens(group)
    return parts


def flat(batches: Sequence[Batch]) -> list[Group]:
    return [group for batch in batches for group in batch]
