"""Find the candidates of a prompt that may be chosen as y+, and choose the best one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from selfcontrast.filters.pool import Floats, SampledPrompt, consensus

PRECISION = 1e-6  # scores or cosines at most this far apart are ties: they are stored in single or half precision


@dataclass(frozen=True)
class Contenders:
    """The candidates of a prompt that may be chosen as y+, sorted by text.

    They are distinct, not empty, and not truncated: a policy trained on truncated text would not learn to stop. A copy
    of the target may be among them.

    Attributes:
        scores: scores by the verifier or reward model [n]; None without either.
        consensus: mean cosine to the prompt's other responses [n], in [-1, 1].
    """

    scores: Floats | None
    consensus: Floats


class Chosen(Protocol):
    """Select the chosen response y+ of a prompt, which training makes likelier than the negatives.

    Attributes:
        target: True if the target is chosen.
        candidate: True if a candidate is chosen. If `target` is True too, both are chosen, each in its own group.
        scored: True if the choice needs scores.
    """

    target: ClassVar[bool]
    candidate: ClassVar[bool]
    scored: ClassVar[bool]

    def value(self, contenders: Contenders) -> Floats:
        """Return a value per contender [n]; the highest is chosen. Ties are broken at random with `Filter.seed`."""
        ...


@dataclass(frozen=True)
class ChosenCandidate:
    """A prompt's chosen candidate.

    Attributes:
        row: its index among the candidates.
        score: its score; None without a scorer.
        is_target: True if its text equals the target.
    """

    row: int
    score: float | None
    is_target: bool


def contenders(sampled: SampledPrompt) -> list[int]:
    """Return indices of the candidates that may be chosen: the first of each text, sorted by text."""
    first: dict[str, int] = {}
    for row, text in enumerate(sampled.texts):
        if text.strip() and (sampled.ended is None or sampled.ended[row]):
            first.setdefault(text.strip(), row)
    return [first[text] for text in sorted(first)]


def choose_best(
    chosen: Chosen,
    sampled: SampledPrompt,
    rows: Sequence[int],
    score_of: Mapping[str, float] | None,
    seed: Sequence[int],
) -> ChosenCandidate:
    """Select the contender with the highest value; ties (within `PRECISION`) are broken by the seed.

    Args:
        rows: indices of the contenders, from `contenders`.
        score_of: score by stripped text; None without a scorer.
        seed: the prompt's seed.
    """
    texts = [sampled.texts[row].strip() for row in rows]
    scores = None if score_of is None else np.array([score_of[text] for text in texts], dtype=np.float32)
    value = chosen.value(Contenders(scores, consensus(sampled, np.array(rows, dtype=np.intp))))
    highest = np.flatnonzero(value >= value.max() - PRECISION)
    stream = [*seed, 2]  # the suffix differs from those of the draw (none) and of `selectors.Random` (1)
    i = int(np.random.default_rng(stream).choice(highest))
    score = None if scores is None else float(scores[i])
    return ChosenCandidate(rows[i], score, texts[i] == sampled.target.strip())
