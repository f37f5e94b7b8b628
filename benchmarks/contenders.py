"""The ways of training on K negatives that are compared, on one model that they take turns with."""

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
)  # the paper's


@dataclass
class Contender:
    """
    Attributes:
        model: shared by all contenders, but for a compiled one.
        attention: what transformers is to call, set before this contender's turn.
        step: forward and backward pass of the i-th batch, which leaves gradients on the model.
        work: what that takes, over all batches.
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
    """Each batch as one packed row."""
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
    """Each response with a prompt of its own, without padding, in one causal call: what a careful trainer would do.

    The same code as ours, on groups that hold one response each, so that they have nothing to share. Passes hold whole
    groups of equally many negatives, within `budget` tokens where one allows it.
    """
    use_shared_prompt(model, attention)
    parts = [within(batch, budget, lambda g: rows_work([g]).tokens) for batch in batches]

    def log_probs(groups: Batch) -> Tensor:
        """[B, K+1]"""
        apart = [Group("", g.prompt, response, []) for g in groups for response in g.responses]
        packed = pack(apart).to(model.device)
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
    """2K padded rows per group; groups whose prompts are equally long share a pass, within `budget` tokens."""
    model.set_attn_implementation("sdpa")
    alike = [[list(part) for _, part in groupby(batch, lambda g: len(g.prompt))] for batch in batches]
    parts = [[part for same in batch for part in within(same, budget, padded_tokens)] for batch in alike]
    inputs = [[_Padded.of(part, model.device) for part in batch] for batch in parts]

    def log_probs(rows: _Padded) -> Tensor:
        """[pairs, 2]"""
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
    """Rows of prompt and response, padded on the right; target and negative in turns.

    Attributes:
        ids, attended: [rows, longest].
        prompt: tokens of every row's prompt.
        weights: [pairs] 1 / K of each pair's group: the loss of a group is the mean over its negatives.
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
    """Neighbours together, each part within `budget` tokens where a single group allows it."""
    parts: list[list[Group]] = []
    taken = budget
    for group in groups:
        if taken + tokens(group) > budget:
            parts.append([])
            taken = 0
        parts[-1].append(group)
        taken += tokens(group)
    return parts


def flat(batches: Sequence[Batch]) -> list[Group]:
    return [group for batch in batches for group in batch]
