"""The groups of preference training: a prompt, its chosen response, and the negatives in the order of training.

The chosen response is the prompt's target, or a candidate that the stage filter has chosen. `Group.target` holds it.
"""

from array import array
from collections.abc import Container, Mapping, Sequence

from torch import Tensor

from selfcontrast.data.candidates import TARGET, Negative, Positive
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.packing import Group


def nearest_first(ranked: Sequence[Negative], count: int) -> list[Negative]:
    """Return the first `count` ranks of a prompt, the most similar to the target first (of equal ones, by rank).

    The nested draw is in random order. Plackett-Luce ranks by similarity, and weights by rank mean nothing without it.
    """
    return sorted(ranked[:count], key=lambda negative: -negative.similarity)


SECOND = "+best"  # what the id of a prompt's second group has behind its example's


def example_of(group: str, examples: Container[str]) -> str:
    """Return the id of the example that a group is of.

    Args:
        examples: the ids of the examples that have groups.
    """
    return group if group in examples else group.removesuffix(SECOND)


def in_order(pool: Mapping[str, Tensor], used: Mapping[str, Sequence[Negative]]) -> dict[str, Tensor]:
    """Return per group id the scores [1 + K] of the chosen response and of these negatives of its prompt.

    Args:
        pool: per group id the scores of the chosen response and of all negatives, by rank [1 + pool].
        used: per example id the negatives that are trained on.
    """
    found = {name: used.get(example_of(name, used)) for name in pool}
    return {
        name: pool[name][[0, *(1 + n.rank for n in negatives)]]
        for name, negatives in found.items()
        if negatives is not None
    }


def preference_groups(
    renderer: Renderer,
    examples: Sequence[Example],
    negatives: Mapping[str, Sequence[Negative]],
    cutoff: int,
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
        room = cutoff - len(prompt)
        responses = [target]
        if chosen is not None:
            responses = [target if one.sample == TARGET else list(one.token_ids) for one in chosen[example.id]]
        for name, response in zip((example.id, example.id + SECOND), responses, strict=False):
            if len(response) > room:
                without_room += 1
                continue
            shown = [negative.token_ids[:room] for negative in negatives[example.id]]
            groups.append(Group(name, array("i", prompt), array("i", response), shown))
    if not groups:
        raise UserError(f"no prompt with its chosen response fits into trainer.cutoff={cutoff} tokens: raise it")
    if len({group.id for group in groups}) < len(groups):
        raise UserError(f"data: an id is another's with {SECOND!r} behind it: rename it, or use another chosen=")
    return groups, without_room
