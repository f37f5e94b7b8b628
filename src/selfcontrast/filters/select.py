"""Which candidates become negatives, and in which order.

A prompt's distinct candidates (less empty ones and copies of the target) go through a selector; what it keeps is drawn
in a seeded random order, and rank k of that order is negative k. A run with K negatives takes the first K ranks, so
its negatives are a subset of those for any larger K; and every K sees the same prompts, because which prompts can be
used is decided for the whole pool (`max_negatives`), not for K.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from selfcontrast.data.candidates import Candidate
from selfcontrast.errors import UserError

Floats = NDArray[np.floating[Any]]
SHORTAGES = ("drop_everywhere", "refill", "error")


class Selector(Protocol):
    """Which of a prompt's distinct candidates may be negatives."""

    def most(self, samples: int) -> int:
        """The most candidates it can keep of `samples` distinct ones: what K is checked against before any compute."""
        ...

    def keep(self, similarity: Floats) -> NDArray[np.intp]:
        """Indices of the candidates kept, by similarity to the target [n]."""
        ...


@dataclass(frozen=True)
class LeastSimilar:
    """The paper's filter: the share `a` of the candidates that is least similar to the target."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"filter.selector.share={self.share}: a share of the candidates, above 0 and at most 1")

    def most(self, samples: int) -> int:
        return int(self.share * samples + 1e-9)

    def keep(self, similarity: Floats) -> NDArray[np.intp]:
        return np.argsort(similarity, kind="stable")[: self.most(len(similarity))]


@dataclass(frozen=True)
class Everything:
    """No filter: all distinct candidates (the paper's "alldedup" baseline; with K = 1, SPIN's)."""

    def most(self, samples: int) -> int:
        return samples

    def keep(self, similarity: Floats) -> NDArray[np.intp]:
        return np.arange(len(similarity))


@dataclass(frozen=True)
class Filter:
    """A selector, and what every K of a sweep has in common.

    Attributes:
        selector: which candidates may be negatives.
        max_negatives: ranks drawn per prompt; K is at most this.
        on_shortage: what becomes of a prompt with fewer kept candidates than `max_negatives`: it is dropped for every
            K, filled up at its last ranks with the least similar of those that the selector left out (and dropped where
            those are too few), or an error.
        seed: of the draw.
    """

    selector: Any
    max_negatives: int
    on_shortage: str
    seed: int

    def __post_init__(self) -> None:
        if self.max_negatives < 1:
            raise UserError(f"filter.max_negatives={self.max_negatives}: at least 1")
        if self.on_shortage not in SHORTAGES:
            raise UserError(f"filter.on_shortage={self.on_shortage}: one of {', '.join(SHORTAGES)}")

    def check(self, negatives: int, samples: int) -> None:
        """Raises `UserError` where no prompt could give that many negatives."""
        if negatives > self.max_negatives:
            raise UserError(
                f"negatives={negatives} is more than filter.max_negatives={self.max_negatives}: raise that, or lower K"
            )
        most = samples if self.on_shortage == "refill" else self.selector.most(samples)
        if self.max_negatives > most:
            raise UserError(
                f"filter.max_negatives={self.max_negatives} is impossible: of generator.samples={samples} the filter "
                f"keeps {most} at most. Sample more, keep more, or ask for fewer"
            )


def distinct(target: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates without empty ones, copies of the target and repetitions; the first of equal ones stays."""
    seen = {"", target.strip()}
    kept = []
    for candidate in candidates:
        text = candidate.text.strip()
        if text not in seen:
            seen.add(text)
            kept.append(candidate)
    return kept


def draw(settings: Filter, name: str, similarity: Floats) -> NDArray[np.intp]:
    """Indices of a prompt's negatives in rank order: `max_negatives` of them, or fewer, or none.

    Args:
        name: the example's id, which the draw's seed depends on, so that it does not depend on other prompts.
        similarity: of the distinct candidates to the target [n].
    """
    kept = settings.selector.keep(similarity)
    rng = np.random.default_rng([settings.seed, *name.encode()])
    drawn = rng.permutation(kept)[: settings.max_negatives]
    if (missing := settings.max_negatives - len(drawn)) == 0:
        return drawn
    by_similarity = np.argsort(similarity, kind="stable")
    rest = by_similarity[~np.isin(by_similarity, kept)]
    if settings.on_shortage == "refill" and len(rest) >= missing:
        return np.concatenate([drawn, rest[:missing]])
    if settings.on_shortage == "error":
        raise UserError(
            f"prompt {name} leaves {len(kept)} negatives of filter.max_negatives={settings.max_negatives}: "
            "sample more, or choose filter.on_shortage=drop_everywhere"
        )
    return drawn[:0]
