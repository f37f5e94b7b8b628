"""The groups of preference training: a prompt, its chosen response, and the negatives in the order of training.

The chosen response is the prompt's target, or a candidate that the stage filter has chosen. `Group.target` holds it.
"""

from array import array
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, isnan, nan

import torch
from torch import Tensor

from selfcontrast.data.candidates import TARGET, Negative, Positive
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.packing import Group
from selfcontrast.objectives import Objective, Signals


@dataclass(frozen=True)
class Stored:
    """What training reads of the groups' responses, in place of computing it, by group id.

    Attributes:
        reference: the reference's log-probabilities, summed over tokens, the chosen response's first: [K + 1] or more.
        signals: scores [K + 1] and the sampler's log-probabilities [K], where the objective needs them.
        compared: whether the reference is a model at all: False for zeros.
        is_start: whether it is the model that training starts from, so that every margin of step 0 is 0.
    """

    reference: Mapping[str, Tensor]
    signals: Mapping[str, Signals] = field(default_factory=dict)
    compared: bool = True
    is_start: bool = True


def nearest_first(ranked: Sequence[Negative], count: int) -> list[Negative]:
    """Return the first `count` ranks of a prompt, the most similar to the target first (of equal ones, by rank).

    A prompt without target has no similarities: its negatives stay in the order of their ranks.

    The nested draw is in random order. Plackett-Luce ranks by similarity, and weights by rank mean nothing without it.
    """
    return sorted(ranked[:count], key=lambda negative: 0.0 if isnan(negative.similarity) else -negative.similarity)


SECOND = "+best"  # what the id of a prompt's second group has behind its example's


def example_of(group: str, examples: Container[str]) -> str:
    """Return the id of the example that a group is of.

    Args:
        examples: the ids of the examples that have groups.
    """
    return group if group in examples else group.removesuffix(SECOND)


def by_group(groups: Sequence[Group], used: Mapping[str, Sequence[Negative]]) -> dict[str, Sequence[Negative]]:
    """Return per group id the negatives of its prompt, of those by example id."""
    return {group.id: used[example_of(group.id, used)] for group in groups}


def chosen_scores(targets: Mapping[str, float], chosen: Mapping[str, Sequence[Positive]] | None) -> dict[str, float]:
    """Return per group id the score of the chosen response; NaN where nothing scores.

    Args:
        targets: per example id the score of its target.
        chosen: per example id its chosen responses; None for the targets.
    """
    if chosen is None:
        return dict(targets)
    return {
        group: targets.get(example, nan) if one.sample == TARGET else one.score
        for example, positives in chosen.items()
        for group, one in zip((example, example + SECOND), positives, strict=False)
    }


def in_order(pool: Mapping[str, Tensor], used: Mapping[str, Sequence[Negative]]) -> dict[str, Tensor]:
    """Return per group id the scores [1 + K] of the chosen response and these negatives.

    Args:
        pool: per group id the scores of the chosen response and of all negatives, by rank [1 + pool].
        used: per group id the negatives that are trained on.
    """
    return {name: pool[name][[0, *(1 + n.rank for n in negatives)]] for name, negatives in used.items() if name in pool}


def in_order_signals(
    objective: Objective,
    groups: Sequence[Group],
    used: Mapping[str, Sequence[Negative]],
    chosen: Mapping[str, float],
) -> dict[str, Signals]:
    """Return per group id the signals of the chosen response [1 + K] and these negatives [K]; none if none are needed.

    Args:
        used: per group id the negatives that are trained on.
        chosen: per group id the score of the chosen response.

    Raises:
        UserError: where one that the objective needs is unknown, naming the first prompt.
    """
    found = {}
    name = f"objective={type(objective).__name__}"
    for group in groups if objective.needs_scores or objective.needs_sampler else ():
        negatives = used[group.id]
        scores = [chosen.get(group.id, nan), *(negative.score for negative in negatives)]
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
    """Return per group id the reference's scores [1 + K]: of the chosen response, and the sampler's of negatives.

    Args:
        targets: per group id the reference's scores, of which the first is the chosen response's.

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
            f"{name} needs negatives as they were sampled, and trainer.max_length cuts one of prompt {group.id}: raise it "
            "to generator.max_length"
        )
    return [negative.log_prob for negative in negatives]


def preference_groups(
    renderer: Renderer,
    examples: Sequence[Example],
    negatives: Mapping[str, Sequence[Negative]],
    max_length: int,
    chosen: Mapping[str, Sequence[Positive]] | None = None,
) -> tuple[list[Group], int]:
    """Return the groups of the prompts that have negatives, in their order, and how many groups the cutoff leaves out.

    A prompt has a group per chosen response. Candidates keep the token ids they were sampled as. Which prompts are used
    depends on the prompt and its chosen response alone, never on a negative's length; a negative is cut to the tokens
    that are left, as sampling would have.

    Args:
        chosen: per example id its chosen responses; None for the targets.

    Raises:
        UserError: where no prompt has room, or two groups would have one id.
    """
    groups, without_room = list[Group](), 0
    for example in (example for example in examples if example.id in negatives):
        prompt, target = renderer.example(example)
        room = max_length - len(prompt)
        responses = [target]
        if chosen is not None:
            responses = [target if one.sample == TARGET else list(one.token_ids) for one in chosen[example.id]]
        for name, response in zip((example.id, example.id + SECOND), responses, strict=False):
            if len(response) > room:
                without_room += 1
                continue
            shown = [negative.token_ids[:room] for negative in negatives[example.id]]
            if name != example.id and name in negatives:
                raise UserError(f"data: the id {name!r} is another's with {SECOND!r} behind it: rename it")
            groups.append(Group(name, array("i", prompt), array("i", response), shown))
    if not groups:
        raise UserError(
            f"no prompt with its chosen response fits into trainer.max_length={max_length} tokens: raise it"
        )
    return groups, without_room
