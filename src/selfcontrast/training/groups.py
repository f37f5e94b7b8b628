"""The groups of preference training: a prompt, its chosen response, and its negatives in training order.

The chosen response is the prompt's target, or a candidate chosen by the filter stage. `Group.target` holds it.
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
class StoredScores:
    """Precomputed scores of the groups' responses, by group id.

    Attributes:
        reference: the reference's log-probabilities, summed over tokens, [K + 1] or more; the chosen response is first.
        signals: scores [K + 1] and the sampler's log-probabilities [K], if the objective needs them.
        reference_is_model: False if the reference scores are zeros instead.
        reference_is_start: True if training starts from the reference, so that every margin of step 0 is 0.
    """

    reference: Mapping[str, Tensor]
    signals: Mapping[str, Signals] = field(default_factory=dict)
    reference_is_model: bool = True
    reference_is_start: bool = True


def nearest_first(ranked: Sequence[Negative], count: int) -> list[Negative]:
    """Return a prompt's first `count` negatives by rank, sorted by similarity to the target, highest first.

    Ranks follow the filter's order, which is often random, but Plackett-Luce and rank weights need the order of
    similarity. Ties keep the order of ranks. For a prompt without a target, all negatives count as ties.
    """
    return sorted(ranked[:count], key=lambda negative: 0.0 if isnan(negative.similarity) else -negative.similarity)


SECOND_GROUP = "+best"  # the id of a prompt's second group is the example's id and this suffix


def example_of(group: str, examples: Container[str]) -> str:
    """Return the id of a group's example.

    Args:
        examples: the ids of the examples that have groups.
    """
    return group if group in examples else group.removesuffix(SECOND_GROUP)


def negatives_by_group(
    groups: Sequence[Group], used: Mapping[str, Sequence[Negative]]
) -> dict[str, Sequence[Negative]]:
    """Return the negatives of each group by its id. `used` has them by example id."""
    return {group.id: used[example_of(group.id, used)] for group in groups}


def chosen_scores(targets: Mapping[str, float], chosen: Mapping[str, Sequence[Positive]] | None) -> dict[str, float]:
    """Return the score of the chosen response by group id; NaN if there is no score.

    Args:
        targets: scores of the targets by example id.
        chosen: chosen responses by example id; None for the targets.
    """
    if chosen is None:
        return dict(targets)
    return {
        group: targets.get(example, nan) if positive.sample == TARGET else positive.score
        for example, positives in chosen.items()
        for group, positive in zip((example, example + SECOND_GROUP), positives, strict=False)
    }


def select_scores(pool: Mapping[str, Tensor], used: Mapping[str, Sequence[Negative]]) -> dict[str, Tensor]:
    """Return the scores [1 + K] of the chosen response and the used negatives, by group id.

    Args:
        pool: scores of the chosen response and of all negatives in order of rank, [1 + pool], by group id.
        used: the negatives to train on, by group id.
    """
    return {name: pool[name][[0, *(1 + n.rank for n in negatives)]] for name, negatives in used.items() if name in pool}


def select_signals(
    objective: Objective,
    groups: Sequence[Group],
    used: Mapping[str, Sequence[Negative]],
    chosen: Mapping[str, float],
) -> dict[str, Signals]:
    """Return the signals of each group by id; empty if the objective needs none.

    Args:
        used: the negatives to train on, by group id.
        chosen: scores of the chosen responses by group id.

    Raises:
        UserError: if a signal that the objective needs is unknown. The error names the first prompt that lacks one.
    """
    signals = {}
    name = f"objective={type(objective).__name__}"
    for group in groups if objective.needs_scores or objective.needs_sampler else ():
        negatives = used[group.id]
        scores = [chosen.get(group.id, nan), *(negative.score for negative in negatives)]
        if objective.needs_scores and not all(map(isfinite, scores)):
            raise UserError(
                f"{name} needs the score of every response, but one of prompt {group.id} has none. Set a verifier or "
                "filter.reward_model, or choose another objective."
            )
        sampler = _sampler_logps(group, negatives, name) if objective.needs_sampler else [0.0] * len(negatives)
        signals[group.id] = Signals(torch.tensor(scores), torch.tensor(sampler))
    return signals


def sampler_reference(
    targets: Mapping[str, Tensor], groups: Sequence[Group], used: Mapping[str, Sequence[Negative]]
) -> dict[str, Tensor]:
    """Return reference scores [1 + K] by group id, with the sampler's log-probabilities for the negatives.

    Args:
        targets: reference scores by group id; the chosen response is first.

    Raises:
        UserError: if a sampler's log-probability is unknown. The error names the first prompt that lacks one.
    """
    return {
        group.id: torch.cat(
            [targets[group.id][:1], torch.tensor(_sampler_logps(group, used[group.id], "reference=sampler"))]
        )
        for group in groups
    }


def _sampler_logps(group: Group, negatives: Sequence[Negative], name: str) -> list[float]:
    """Return the sampler's log-probabilities of a group's negatives. They must not be truncated."""
    if not all(isfinite(negative.log_prob) for negative in negatives):
        raise UserError(
            f"{name} needs the sampler's log-probabilities, but a negative of prompt {group.id} has none. Sample with "
            "a generator that gives them (hf, vllm, or a server that returns logprobs), or use another setting."
        )
    if any(len(used) < len(negative.token_ids) for used, negative in zip(group.negatives, negatives, strict=True)):
        raise UserError(
            f"{name} needs whole negatives, but trainer.max_length cuts one of prompt {group.id}. Raise "
            "trainer.max_length to generator.max_length."
        )
    return [negative.log_prob for negative in negatives]


def preference_groups(
    renderer: Renderer,
    examples: Sequence[Example],
    negatives: Mapping[str, Sequence[Negative]],
    max_length: int,
    chosen: Mapping[str, Sequence[Positive]] | None = None,
) -> tuple[list[Group], int]:
    """Return the groups of prompts with negatives, in the order of `examples`, and how many exceed `max_length`.

    A prompt has one group per chosen response. Candidates keep their sampled token ids. Whether a group is used depends
    on its prompt and chosen response alone, never on a negative's length. Negatives are truncated to `max_length`, as
    sampling with this limit would have done.

    Args:
        chosen: chosen responses by example id; None for the targets.

    Raises:
        UserError: if no prompt fits, or two groups would have the same id.
    """
    groups, too_long = list[Group](), 0
    for example in (example for example in examples if example.id in negatives):
        prompt, target = renderer.example(example)
        max_response = max_length - len(prompt)
        responses = [target]
        if chosen is not None:
            responses = [target if c.sample == TARGET else list(c.token_ids) for c in chosen[example.id]]
        for name, response in zip((example.id, example.id + SECOND_GROUP), responses, strict=False):
            if len(response) > max_response:
                too_long += 1
                continue
            truncated = [negative.token_ids[:max_response] for negative in negatives[example.id]]
            if name != example.id and name in negatives:
                raise UserError(f"data: the id {name!r} is another example's id plus {SECOND_GROUP!r}. Rename it.")
            groups.append(Group(name, array("i", prompt), array("i", response), truncated))
    if not groups:
        raise UserError(
            f"no prompt with its chosen response fits into trainer.max_length={max_length} tokens. Raise it."
        )
    return groups, too_long
