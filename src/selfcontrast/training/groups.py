"""The groups of preference training: a prompt, its target, and the negatives that are trained on, in their order."""

from array import array
from collections.abc import Mapping, Sequence

from torch import Tensor

from selfcontrast.data.candidates import Negative
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.packing import Group


def nearest_first(ranked: Sequence[Negative], count: int) -> list[Negative]:
    """Return the first `count` ranks of a prompt, the most similar to the target first (of equal ones, by rank).

    The nested draw is in random order. Plackett-Luce ranks by similarity, and weights by rank mean nothing without it.
    """
    return sorted(ranked[:count], key=lambda negative: -negative.similarity)


def in_order(pool: Mapping[str, Tensor], used: Mapping[str, Sequence[Negative]]) -> dict[str, Tensor]:
    """Return per id the scores [1 + K] of the target and these negatives, of the pool's scores [1 + pool] by rank."""
    return {name: pool[name][[0, *(1 + n.rank for n in negatives)]] for name, negatives in used.items() if name in pool}


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
