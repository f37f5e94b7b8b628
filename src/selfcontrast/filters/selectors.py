"""Selectors by similarity to the target, by chance and by score. Those by what candidates have in common: `diverse`.

A pool's candidates are in ascending order of similarity, so most of these are a range of indices.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from selfcontrast.constrained import BelowOne, Cosine, Fraction, Real, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.filters.select import Indices, Pool

DISTINCT, SAMPLES = "distinct", "samples"


def share_of(count: int, share: float) -> int:
    """A share rounded down, but not by floating point: 0.1 of 30 is 3."""
    return int(share * count + 1e-9)


@dataclass(frozen=True)
class Unranked:
    """A selector whose negatives are drawn at random from what it keeps, without scores."""

    ranked: ClassVar[bool] = False
    scored: ClassVar[bool] = False


@dataclass(frozen=True)
class Everything(Unranked):
    """No filter: all distinct candidates (the paper's "alldedup" baseline; with K = 1, SPIN's)."""

    def most(self, samples: int) -> int:
        return samples

    def keep(self, pool: Pool) -> Indices:
        return np.arange(len(pool.similarity))


@dataclass(frozen=True)
class LeastSimilar(Unranked):
    """Keep the share `a` of the candidates that is least similar to the target: the paper's filter.

    Attributes:
        share: a.
        of: what a is a share of. "distinct": the pool's candidates. "samples": all N responses, as in the reference
            implementation. There min(floor(a·N), distinct - 1) of the distinct responses are kept, those less similar
            than the next one; an empty response and a copy of the target count as distinct, and are removed last.
    """

    share: Fraction
    of: str

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")
        if self.of not in (DISTINCT, SAMPLES):
            raise UserError(f"filter.selector.of={self.of}: one of {DISTINCT}, {SAMPLES}")

    def most(self, samples: int) -> int:
        count = share_of(samples, self.share)
        return count if self.of == DISTINCT else max(0, min(count, samples - 1))

    def keep(self, pool: Pool) -> Indices:
        if self.of == DISTINCT:
            return np.arange(self.most(len(pool.similarity)))
        every = np.sort(np.concatenate([pool.similarity, pool.excluded]))
        if not len(every):
            return np.arange(0)
        threshold = every[min(share_of(pool.samples, self.share), len(every) - 1)]
        return np.arange(np.searchsorted(pool.similarity, threshold, side="left"))


@dataclass(frozen=True)
class RankWindow(Unranked):
    """Candidates whose place in the order of similarity is from the share `low` up to the share `high`."""

    low: BelowOne
    high: Fraction

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")
        if self.low >= self.high:
            raise UserError(f"filter.selector.low={self.low}: must be below filter.selector.high={self.high}")

    def most(self, samples: int) -> int:
        return share_of(samples, self.high) - share_of(samples, self.low)

    def keep(self, pool: Pool) -> Indices:
        count = len(pool.similarity)
        return np.arange(share_of(count, self.low), share_of(count, self.high))


@dataclass(frozen=True)
class LessSimilarThan(Unranked):
    """All candidates whose similarity to the target is below `bar`, however many those are."""

    bar: Cosine

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def most(self, samples: int) -> int:
        return samples

    def keep(self, pool: Pool) -> Indices:
        return np.arange(np.searchsorted(pool.similarity, self.bar, side="left"))


@dataclass(frozen=True)
class MostSimilarBelow:
    """The hardest negatives that are no false ones: below `bar`, the most similar first (rank 0)."""

    bar: Cosine
    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def most(self, samples: int) -> int:
        return samples

    def keep(self, pool: Pool) -> Indices:
        return np.arange(np.searchsorted(pool.similarity, self.bar, side="left"))[::-1]


@dataclass(frozen=True)
class Random(Unranked):
    """Keep as many candidates as `LeastSimilar` with these settings, at random: its control."""

    share: Fraction
    of: str

    def __post_init__(self) -> None:
        _ = self._filter

    @property
    def _filter(self) -> LeastSimilar:
        return LeastSimilar(self.share, self.of)

    def most(self, samples: int) -> int:
        return self._filter.most(samples)

    def keep(self, pool: Pool) -> Indices:
        apart, count = [*pool.seed, 1], len(pool.similarity)  # from the draw's, which shuffles what is kept
        return np.random.default_rng(apart).permutation(count)[: len(self._filter.keep(pool))]


@dataclass(frozen=True)
class LowestScored:
    """An oracle: of the candidates that score below `below` (None: of all) the share with the lowest scores."""

    share: Fraction
    below: Real | None
    ranked: ClassVar[bool] = False
    scored: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def most(self, samples: int) -> int:
        return share_of(samples, self.share)

    def keep(self, pool: Pool) -> Indices:
        assert pool.scores is not None, "checked before any compute"
        worst = np.argsort(pool.scores, kind="stable")  # of equal scores the least similar first
        if self.below is not None:
            worst = worst[pool.scores[worst] < self.below]
        return worst[: self.most(len(worst))]


@dataclass(frozen=True)
class LowestFirst:
    """All candidates, the lowest score first (rank 0), of equal ones the least similar: the worst of n."""

    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = True

    def most(self, samples: int) -> int:
        return samples

    def keep(self, pool: Pool) -> Indices:
        assert pool.scores is not None, "checked before any compute"
        return np.argsort(pool.scores, kind="stable")
