"""Selectors by one number of each candidate, or by chance. Those that compare candidates with each other: `diverse`.

A pool's candidates are in ascending order of similarity, so those by similarity are a range of indices.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from selfcontrast.constrained import BelowOne, Cosine, Fraction, NonNegative, Real, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.filters.select import Floats, Indices, Pool
from selfcontrast.filters.signals import CONSENSUS, LOG_PROB, SIMILARITY, ranks

DISTINCT, SAMPLES = "distinct", "samples"


def fraction_of(count: int, fraction: float) -> int:
    """A share rounded down, but not by floating point: 0.1 of 30 is 3."""
    return int(fraction * count + 1e-9)


def lowest(values: Floats, count: int) -> Indices:
    """Indices of the `count` lowest values, the lowest first; of equal ones the first, which is the least similar."""
    return np.argsort(values, kind="stable")[:count]


@dataclass(frozen=True)
class Unranked:
    """A selector whose negatives are drawn at random from what it keeps, without scores."""

    ranked: ClassVar[bool] = False
    scored: ClassVar[bool] = False


@dataclass(frozen=True)
class Everything(Unranked):
    """No filter: all distinct candidates (the paper's "alldedup" baseline; with K = 1, SPIN's)."""

    needs_target: ClassVar[bool] = False

    def max_kept(self, samples: int) -> int:
        return samples

    def select(self, pool: Pool) -> Indices:
        return np.arange(len(pool.similarity))


@dataclass(frozen=True)
class LowestFraction(Unranked, ABC):
    """Keep the share of the candidates that is lowest by `signal`; of equal ones the least similar.

    Attributes:
        fraction: a.
        of: what a is a share of. "distinct": the pool's n candidates, of which floor(a·n) are kept. "samples": all N
            responses, of which min(floor(a·N), n - 1) are kept.
    """

    fraction: Fraction
    of: str

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")
        if self.of not in (DISTINCT, SAMPLES):
            raise UserError(f"filter.selector.of={self.of}: one of {DISTINCT}, {SAMPLES}")

    @abstractmethod
    def signal(self, pool: Pool) -> Floats:
        """What the candidates are compared by [n]."""

    def max_kept(self, samples: int) -> int:
        return self._count(samples, samples)

    def select(self, pool: Pool) -> Indices:
        return lowest(self.signal(pool), self._count(len(pool.similarity), pool.samples))

    def _count(self, distinct: int, samples: int) -> int:
        if self.of == DISTINCT:
            return fraction_of(distinct, self.fraction)
        return max(0, min(fraction_of(samples, self.fraction), distinct - 1))


@dataclass(frozen=True)
class LeastSimilar(LowestFraction):
    """Keep the share of the candidates that is least similar to the target: the paper's filter.

    With "samples" this is the reference implementation's rule: min(floor(a·N), distinct - 1) of the distinct responses
    are kept, those less similar than the next one; an empty response and a copy of the target count as distinct, and
    are removed last.
    """

    def signal(self, pool: Pool) -> Floats:
        return pool.similarity

    def select(self, pool: Pool) -> Indices:
        if self.of == DISTINCT:
            return super().select(pool)
        every = np.sort(np.concatenate([pool.similarity, pool.excluded]))
        if not len(every):
            return np.arange(0)
        threshold = every[min(fraction_of(pool.samples, self.fraction), len(every) - 1)]
        return np.arange(np.searchsorted(pool.similarity, threshold, side="left"))


@dataclass(frozen=True)
class LeastConsistent(LowestFraction):
    """Keep the share that agrees least with the prompt's other responses, by `Pool.consensus`. It needs no target.

    The responses that a model gives most often are its likeliest right ones (self-consistency, Wang et al., 2023;
    as a signal for preferences, ScPO, arXiv 2411.04109).
    """

    needs_target: ClassVar[bool] = False

    def signal(self, pool: Pool) -> Floats:
        return pool.consensus


@dataclass(frozen=True)
class LeastLikely(LowestFraction):
    """Keep the share with the sampler's lowest log-probability per token."""

    needs_log_probs: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    def signal(self, pool: Pool) -> Floats:
        return pool.log_prob_per_token


@dataclass(frozen=True)
class LowestRanked(LowestFraction):
    """Keep the share with the lowest sum of ranks by several signals, so that none of their units matters.

    Attributes:
        signals: two or more of "similarity", "consensus" and "log_prob" (per token).
    """

    signals: list[Literal["similarity", "consensus", "log_prob"]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.signals)) < max(2, len(self.signals)):
            raise UserError(f"filter.selector.signals={self.signals}: two or more different ones")

    @property
    def needs_log_probs(self) -> bool:
        return LOG_PROB in self.signals

    @property
    def needs_target(self) -> bool:
        return SIMILARITY in self.signals

    def signal(self, pool: Pool) -> Floats:
        own = {SIMILARITY: pool.similarity, CONSENSUS: pool.consensus, LOG_PROB: pool.log_prob_per_token}
        total: Floats = np.sum([ranks(own[name]) for name in self.signals], axis=0)
        return total


@dataclass(frozen=True)
class RankWindow(Unranked):
    """Candidates whose place in the order of similarity is from the share `low` up to the share `high`."""

    low: BelowOne
    high: Fraction

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")
        if self.low >= self.high:
            raise UserError(f"filter.selector.low={self.low}: must be below filter.selector.high={self.high}")

    def max_kept(self, samples: int) -> int:
        return fraction_of(samples, self.high) - fraction_of(samples, self.low)

    def select(self, pool: Pool) -> Indices:
        count = len(pool.similarity)
        return np.arange(fraction_of(count, self.low), fraction_of(count, self.high))


@dataclass(frozen=True)
class LessSimilarThan(Unranked):
    """All candidates whose similarity to the target is below `threshold`, however many those are."""

    threshold: Cosine

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def max_kept(self, samples: int) -> int:
        return samples

    def select(self, pool: Pool) -> Indices:
        return np.arange(np.searchsorted(pool.similarity, self.threshold, side="left"))


@dataclass(frozen=True)
class MostSimilarBelow:
    """The hardest negatives that are no false ones: below `threshold`, the most similar first (rank 0)."""

    threshold: Cosine
    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def max_kept(self, samples: int) -> int:
        return samples

    def select(self, pool: Pool) -> Indices:
        return np.arange(np.searchsorted(pool.similarity, self.threshold, side="left"))[::-1]


@dataclass(frozen=True)
class Random(Unranked):
    """Keep as many candidates as `LeastSimilar` with these settings, at random: its control."""

    fraction: Fraction
    of: str

    def __post_init__(self) -> None:
        _ = self._filter

    @property
    def needs_target(self) -> bool:
        return self.of == SAMPLES  # as many as lie below the cut by similarity

    @property
    def _filter(self) -> LeastSimilar:
        return LeastSimilar(self.fraction, self.of)

    def max_kept(self, samples: int) -> int:
        return self._filter.max_kept(samples)

    def select(self, pool: Pool) -> Indices:
        apart, count = [*pool.seed, 1], len(pool.similarity)  # from the draw's, which shuffles what is kept
        return np.random.default_rng(apart).permutation(count)[: len(self._filter.select(pool))]


@dataclass(frozen=True)
class LowestScored:
    """An oracle: of the candidates that score below `below` (None: of all) the share with the lowest scores."""

    fraction: Fraction
    below: Real | None
    ranked: ClassVar[bool] = False
    scored: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def max_kept(self, samples: int) -> int:
        return fraction_of(samples, self.fraction)

    def select(self, pool: Pool) -> Indices:
        assert pool.scores is not None, "checked before any compute"
        worst = lowest(pool.scores, len(pool.scores))
        if self.below is not None:
            worst = worst[pool.scores[worst] < self.below]
        return worst[: self.max_kept(len(worst))]


@dataclass(frozen=True)
class NearestBelowMean:
    """Order all candidates by how near their score is to mean - `sigmas` standard deviations, the nearest first.

    The lowest reward of many responses is a worse negative than the one there (arXiv 2502.16825, with 2 standard
    deviations). Mean and (population) standard deviation are those of the prompt's sampled responses, so a repeated
    one counts as often as it was sampled; empty ones and copies of the target have no score and do not count. Of
    equally near ones the lower score comes first, then the less similar.
    """

    sigmas: NonNegative
    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def max_kept(self, samples: int) -> int:
        return samples

    def select(self, pool: Pool) -> Indices:
        assert pool.scores is not None, "checked before any compute"
        if not len(pool.scores):
            return np.arange(0)
        scores = pool.scores.astype(np.float64)
        mean = np.average(scores, weights=pool.counts)
        deviation = np.sqrt(np.average((scores - mean) ** 2, weights=pool.counts))
        return np.lexsort((scores, np.abs(scores - (mean - self.sigmas * deviation))))


@dataclass(frozen=True)
class LowestFirst:
    """All candidates, the lowest score first (rank 0), of equal ones the least similar: the worst of n."""

    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    def max_kept(self, samples: int) -> int:
        return samples

    def select(self, pool: Pool) -> Indices:
        assert pool.scores is not None, "checked before any compute"
        return np.argsort(pool.scores, kind="stable")


@dataclass(frozen=True)
class LeastConsistentFirst:
    """All candidates, the lowest `Pool.consensus` first (rank 0), of equal ones the least similar.

    With one negative it is the least consistent response, as in ScPO (arXiv 2411.04109). It needs no target.
    """

    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = False
    needs_target: ClassVar[bool] = False

    def max_kept(self, samples: int) -> int:
        return samples

    def select(self, pool: Pool) -> Indices:
        return np.argsort(pool.consensus, kind="stable")
