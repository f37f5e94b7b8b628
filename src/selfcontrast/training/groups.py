"""The groups of preference training: a prompt, its target, and the negatives that are trained on, in their order."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan

import torch
from torch import Tensor

from selfcontrast.data.candidates import Negative
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.packing import Group
from selfcontrast.objectives import Objective, Signals


@dataclass(frozen=True)
class Stored:
    """What training reads of the groups' responses, in place of computing it, by group id.

    Attributes:
        reference: the reference's log-probabilities, summed over tokens, the target's first: [K + 1] or more.
        signals: scores [K + 1] and the sampler's log-probabilities [K], where the objective needs them.
        compared: whether the reference is the model that training starts from, as good as: False for zeros.
    """

    reference: Mapping[str, Tensor]
    signals: Mapping[str, Signals] = field(default_factory=dict)
    compared: bool = True


def nearest_first(ranked: Sequence[Negative], count: int) -> list[Negative]:
    """Return the first `count` ranks of a prompt, the most similar to the target first (of equal ones, by rank).

    The nested draw is in random order. Plackett-Luce ranks by similarity, and weights by rank mean nothing without it.
    """
    return sorted(ranked[:count], key=lambda negative: -negative.similarity)


def in_order(pool: Mapping[str, Tensor], used: Mapping[str, Sequence[Negative]]) -> dict[str, Tensor]:
    """Return per id the scores [1 + K] of the target and these negatives, of the pool's scores [1 + pool] by rank."""
    return {name: pool[name][[0, *(1 + n.rank for n in negatives)]] for name, negatives in used.items() if name in pool}


def in_order_signals(
    objective: Objective,
    groups: Sequence[Group],
    used: Mapping[str, Sequence[Negative]],
    target_scores: Mapping[str, float],
) -> dict[str, Signals]:
    """Return per group id the signals of the target [1 + K] and these negatives [K]; none where none are needed.

    Raises:
        UserError: where one that the objective needs is unknown, naming the first prompt.
    """
    found = {}
    name = f"objective={type(objective).__name__}"
    for group in groups if objective.needs_scores or objective.needs_sampler else ():
        negatives = used[group.id]
        scores = [target_scores.get(group.id, nan), *(negative.score for negative in negatives)]
        if objective.needs_scores and not all(map(isfinite, scores)):
            raise UserError(
                f"{name} needs the score of every response, and one of prompt {group.id} has none: give a verifier, "
                "set filter.reward_model, or choose another objective"
            )
        sampler = _sampled(group, negatives, name) if objective.needs_sampler else [0.0] * len(negatives)
        found[group.id] = Signals(torch.tensor(scores), torch.tensor(sampler))
    return found


def sampled_reference(
    targets: Mapping[str, Tensor], groups: Sequence[Group], used: Mapping[str, Sequence[Negative]]
) -> dict[str, Tensor]:
    """Return per group id the reference's scores [1 + K]: the target's [1 or more], and the sampler's of negatives.

    Raises:
        UserError: where the sampler's log-probability is unknown, naming the first prompt.
    """
    return {
        group.id: torch.cat([targets[group.id][:1], torch.tensor(_sampled(group, used[group.id], "reference=sampler"))])
        for group in groups
    }


def _sampled(group: Group, negatives: Sequence[Negative], name: str) -> list[float]:
    """The sampler's log-probabilities of a group's negatives, as they are trained on."""
    if not all(isfinite(negative.log_prob) for negative in negatives):
        raise UserError(
            f"{name} needs the sampler's log-probabilities, and a negative of prompt {group.id} has none: sample with "
            "a generator that gives them (hf, vllm, or a server that returns logprobs), or choose another"
        )
    if any(len(cut) < len(negative.token_ids) for cut, negative in zip(group.negatives, negatives, strict=True)):
        raise UserError(
            f"{name} needs negatives as they were sampled, and trainer.cutoff cuts one of prompt {group.id}: raise it "
            "to generator.max_length"
        )
    return [negative.log_prob for negative in negatives]


def preference_groups(
    renderer: Renderer, examples: Sequence[Example], negatives: Mapping[str, Sequence[Negative]], cutoff: int
) -> tuple[list[Group], int]:
    """Return a group of each prompt that has negatives, in their order, and how many prompts the cutoff leaves out.

    Negatives keep the token ids they were sampled as. Which prompts are used depends on the prompt and its target
    alone, never on a negative's length; a negative is cut to the tokens that are left, as sampling would have.

    Raises:
        UserError: where no prompt has room.
    """
    groups = []
    used = [example for example in examples if example.id in negatives]
    for example in used:
        prompt, target = renderer.example(example)
        room = cutoff - len(prompt)
        if len(target) <= room:
            shown = [negative.token_ids[:room] for negative in negatives[example.id]]
            groups.append(Group(example.id, array("i", prompt), array("i", target), shown))
    if not groups:
        raise UserError(f"no prompt and target fit into trainer.cutoff={cutoff} tokens: raise it")
    return groups, len(used) - len(groups)
