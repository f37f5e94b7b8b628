"""Which candidates become negatives, and in which order.

A prompt's distinct candidates (less empty ones and copies of the target) go through a selector. What it keeps is drawn
in a seeded random order, or in the selector's own order where it has one; rank k of that order is negative k. A run
with K negatives takes the first K ranks, so its negatives are a subset of those for any larger K; and every K sees the
same prompts, because which prompts can be used is decided for the whole pool (`max_negatives`), not for K.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from selfcontrast.constrained import Samples, Seed, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.models.reward import RewardModel
from selfcontrast.store import NOT_IN_KEY

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.intp]
Score = Callable[[list[int]], tuple[Floats, float]]
SHORTAGES = ("drop_everywhere", "refill", "error")


@dataclass(frozen=True)
class Pool:
    """A prompt's distinct candidates, the least similar to the target first (of equally similar ones, by text).

    That order is the candidates' own, so nothing depends on the order in which they were sampled.

    Attributes:
        similarity: cosine to the target [n], ascending.
        vectors: embeddings of length one [n, d].
        scores: by the verifier or reward model [n]; None where neither is there.
        seed: of whatever is random; depends on the prompt alone, not on other prompts.
        samples: how many responses were sampled, repetitions included.
        excluded: cosines of the distinct responses that can never be negatives: an empty one, a copy of the target.
    """

    similarity: Floats
    vectors: Floats
    scores: Floats | None
    seed: list[int]
    samples: int
    excluded: Floats


class Selector(Protocol):
    """Which of a prompt's distinct candidates may be negatives.

    Attributes:
        ranked: whether the order of what it keeps is the order of the ranks; otherwise they are drawn from it.
        scored: whether it needs scores.
    """

    ranked: ClassVar[bool]
    scored: ClassVar[bool]

    def most(self, samples: int) -> int:
        """Bound how many candidates are kept of `samples` responses. Used to reject an impossible K before compute."""
        ...

    def keep(self, pool: Pool) -> Indices:
        """Indices of the candidates kept, no two of them equal."""
        ...


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
        reward_model: a `selfcontrast.models.reward.RewardModel` that scores candidates in place of the verifier;
            None for it, where there is one.
    """

    selector: Selector
    max_negatives: Samples
    on_shortage: str
    seed: Seed
    reward_model: RewardModel | None = field(metadata=NOT_IN_KEY)  # its scores are an input of the stage

    def __post_init__(self) -> None:
        check_numbers(self, "filter")
        if self.on_shortage not in SHORTAGES:
            raise UserError(f"filter.on_shortage={self.on_shortage}: one of {', '.join(SHORTAGES)}")

    def check(self, negatives: int, samples: int, verified: bool) -> None:
        """Raises `UserError` where no prompt could give that many negatives, or nothing can score them.

        Args:
            verified: whether there is a verifier.
        """
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
        if self.reward_model is not None:
            self.reward_model.check()
        elif self.selector.scored and not verified:
            raise UserError(
                f"filter.selector={type(self.selector).__name__} needs scores, and there is no verifier: "
                "use filter=oracle_reward filter.reward_model.path=MODEL, or another filter"
            )


@dataclass(frozen=True)
class Drawn:
    """What was decided for a prompt.

    Attributes:
        kept: by the selector.
        ranks: the negatives in rank order: `max_negatives` of them, or none.
        refilled: how many of the last ranks the selector had left out.
    """

    kept: Indices
    ranks: Indices
    refilled: int


@dataclass(frozen=True)
class Sampled:
    """A prompt and its candidates.

    Attributes:
        id: the example's.
        target: its text.
        target_vector: of length one [d].
        texts: the candidates', as they were sampled.
        vectors: theirs, of length one [n, d].
    """

    id: str
    target: str
    target_vector: Floats
    texts: Sequence[str]
    vectors: Floats


@dataclass(frozen=True)
class Choice:
    """What was decided of a prompt.

    Attributes:
        rows: which of the candidates are the pool's [n].
        pool: the distinct candidates.
        good: whether each is as good as the target [n]; None where nothing scores.
        drawn: indices into `rows`.
    """

    rows: Indices
    pool: Pool
    good: NDArray[np.bool_] | None
    drawn: Drawn

    @property
    def negatives(self) -> Indices:
        """Which of the candidates are negatives, in rank order."""
        return self.rows[self.drawn.ranks]


def choose(settings: Filter, sampled: Sampled, score: Score | None = None) -> Choice:
    """A prompt's pool, and the negatives that are drawn from it.

    Args:
        score: of the candidates at some indices, how good they are, and the least that is as good as the target.

    Raises:
        UserError: for too few negatives, where the settings want that to be an error.
    """
    found = distinct(sampled.target, sampled.texts)
    cosines = np.clip(sampled.vectors[found] @ sampled.target_vector, -1, 1)
    order = sorted(range(len(found)), key=lambda i: (cosines[i], sampled.texts[found[i]]))
    rows = np.array(found, dtype=np.intp)[order]
    scores, bar = score(rows.tolist()) if score else (None, 0.0)
    never = np.clip(sampled.vectors[excluded(sampled.target, sampled.texts)] @ sampled.target_vector, -1, 1)
    seed = seed_of(settings, sampled.id)
    pool = Pool(cosines[order], sampled.vectors[rows], scores, seed, len(sampled.texts), never)
    good = None if scores is None else scores >= bar
    return Choice(rows, pool, good, draw(settings, sampled.id, pool))


def distinct(target: str, texts: Sequence[str]) -> list[int]:
    """Indices of the texts without empty ones, copies of the target and repetitions; the first of equal ones stays."""
    seen = {"", target.strip()}
    kept = []
    for i, text in enumerate(texts):
        stripped = text.strip()
        if stripped not in seen:
            seen.add(stripped)
            kept.append(i)
    return kept


def excluded(target: str, texts: Sequence[str]) -> list[int]:
    """Indices of the first empty text and of the first copy of the target, where there is one."""
    stripped = [text.strip() for text in texts]
    return [stripped.index(text) for text in dict.fromkeys(("", target.strip())) if text in stripped]


def seed_of(settings: Filter, name: str) -> list[int]:
    """The seed of a prompt, by its example's id."""
    return [settings.seed, *name.encode()]


def draw(settings: Filter, name: str, pool: Pool) -> Drawn:
    """The negatives of a prompt. Raises `UserError` for too few of them where the settings want that."""
    kept = settings.selector.keep(pool)
    order = kept if settings.selector.ranked else np.random.default_rng(pool.seed).permutation(kept)
    ranks = order[: settings.max_negatives]
    if (missing := settings.max_negatives - len(ranks)) == 0:
        return Drawn(kept, ranks, 0)
    if settings.on_shortage == "refill":
        rest = np.setdiff1d(np.arange(len(pool.similarity)), kept)  # ascending: the least similar first
        if len(rest) >= missing:
            return Drawn(kept, np.concatenate([ranks, rest[:missing]]), missing)
    if settings.on_shortage == "error":
        raise UserError(
            f"prompt {name} leaves {len(kept)} negatives of filter.max_negatives={settings.max_negatives} "
            f"({len(pool.similarity)} distinct candidates): sample more, or choose filter.on_shortage=drop_everywhere"
        )
    return Drawn(kept, ranks[:0], 0)
