"""Selectors that use one number per candidate, or chance. `diverse.py` has selectors that compare candidates.

A pool's candidates are sorted by ascending similarity, so a selection by similarity is a range of indices.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from selfcontrast.constrained import BelowOne, Cosine, Fraction, NonNegative, Real, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.filters.pool import Floats, Indices, Pool
from selfcontrast.filters.signals import CONSENSUS, LOG_PROB, SIMILARITY, ranks

DISTINCT, SAMPLES = "distinct", "samples"


def fraction_of(count: int, fraction: float) -> int:
    """Return floor(fraction * count), safe against floating-point error: 0.1 of 30 is 3."""
    return int(fraction * count + 1e-9)


def lowest(values: Floats, count: int) -> Indices:
    """Return indices of the `count` lowest values of a pool, the lowest first; ties: the least similar first."""
    return np.argsort(values, kind="stable")[:count]


@dataclass(frozen=True)
class BaseSelector:
    """A selector that draws ranks at random, needs no scores, and may keep all candidates."""

    ranked: ClassVar[bool] = False
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def max_kept(self, samples: int) -> int:
        return samples


@dataclass(frozen=True)
class Everything(BaseSelector):
    """Keep all distinct candidates: no filter (the paper's "alldedup" baseline; with K = 1, SPIN's negatives)."""

    needs_target: ClassVar[bool] = False

    def select(self, pool: Pool) -> Indices:
        return np.arange(len(pool.similarity))


@dataclass(frozen=True)
class LowestFraction(BaseSelector, ABC):
    """Keep the fraction of the candidates with the lowest `signal`; ties: the least similar.

    Attributes:
        fraction: the fraction a.
        of: the base of the fraction. "distinct" keeps floor(a·n) of the pool's n candidates. "samples" keeps
            min(floor(a·N), n - 1), where N counts all sampled responses.
    """

    fraction: Fraction
    of: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in (DISTINCT, SAMPLES):
            raise UserError(f"filter.selector.of={self.of} is unknown. Use {DISTINCT} or {SAMPLES}.")

    @abstractmethod
    def signal(self, pool: Pool) -> Floats:
        """Return the number that candidates are compared by [n]."""

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
    """Keep the fraction of the candidates least similar to the target: the paper's filter.

    With of="samples" this is the reference implementation's rule. Sort the n distinct responses by ascending
    similarity. Keep those that are less similar than response number min(floor(a·N), n - 1), counted from 0. Then
    remove the empty response and the copy of the target; both count in n.
    """

    def signal(self, pool: Pool) -> Floats:
        return pool.similarity

    def select(self, pool: Pool) -> Indices:
        if self.of == DISTINCT:
            return super().select(pool)
        cosines = np.sort(np.concatenate([pool.similarity, pool.excluded]))
        if not len(cosines):
            return np.arange(0)
        threshold = cosines[min(fraction_of(pool.samples, self.fraction), len(cosines) - 1)]
        return np.arange(np.searchsorted(pool.similarity, threshold, side="left"))


@dataclass(frozen=True)
class LeastConsistent(LowestFraction):
    """Keep the fraction with the lowest `Pool.consensus`, which agrees least with the prompt's other responses.

    The responses that a model gives most often are most likely to be right (self-consistency, Wang et al., 2023; as a
    preference signal, ScPO, arXiv 2411.04109). The selector needs no target.
    """

    needs_target: ClassVar[bool] = False

    def signal(self, pool: Pool) -> Floats:
        return pool.consensus


@dataclass(frozen=True)
class LeastLikely(LowestFraction):
    """Keep the fraction with the lowest log-probability per token under the sampler."""

    needs_log_probs: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    def signal(self, pool: Pool) -> Floats:
        return pool.log_prob_per_token


@dataclass(frozen=True)
class LowestRanked(LowestFraction):
    """Keep the fraction with the lowest sum of ranks over several signals. Ranks make the signals' units irrelevant.

    Attributes:
        signals: two or more of "similarity", "consensus" and "log_prob" (per token).
    """

    signals: list[Literal["similarity", "consensus", "log_prob"]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.signals)) < max(2, len(self.signals)):
            raise UserError(f"filter.selector.signals={self.signals} is invalid. Give two or more different signals.")

    @property
    def needs_log_probs(self) -> bool:
        return LOG_PROB in self.signals

    @property
    def needs_target(self) -> bool:
        return SIMILARITY in self.signals

    def signal(self, pool: Pool) -> Floats:
        values = {SIMILARITY: pool.similarity, CONSENSUS: pool.consensus, LOG_PROB: pool.log_prob_per_token}
        total: Floats = np.sum([ranks(values[name]) for name in self.signals], axis=0)
        return total


@dataclass(frozen=True)
class RankWindow(BaseSelector):
    """Keep the candidates between the fractions `low` and `high` of the ranking by similarity."""

    low: BelowOne
    high: Fraction

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise UserError(f"filter.selector.low={self.low} must be below filter.selector.high={self.high}.")

    def max_kept(self, samples: int) -> int:
        # A smaller pool may keep more: from 0.5 to 0.6, the window holds none of 8 candidates but one of 7.
        return max(fraction_of(n, self.high) - fraction_of(n, self.low) for n in range(samples + 1))

    def select(self, pool: Pool) -> Indices:
        count = len(pool.similarity)
        return np.arange(fraction_of(count, self.low), fraction_of(count, self.high))


@dataclass(frozen=True)
class LessSimilarThan(BaseSelector):
    """Keep all candidates whose similarity to the target is below `threshold`."""

    threshold: Cosine

    def select(self, pool: Pool) -> Indices:
        return np.arange(np.searchsorted(pool.similarity, self.threshold, side="left"))


@dataclass(frozen=True)
class MostSimilarBelow(BaseSelector):
    """Keep candidates with a similarity below `threshold`, most similar first: hard but rarely false negatives."""

    threshold: Cosine
    ranked: ClassVar[bool] = True

    def select(self, pool: Pool) -> Indices:
        return np.arange(np.searchsorted(pool.similarity, self.threshold, side="left"))[::-1]


@dataclass(frozen=True)
class Random(BaseSelector):
    """Keep a random fraction of the candidates: the control for `LeastSimilar` with the same settings."""

    fraction: Fraction
    of: str

    def __post_init__(self) -> None:
        _ = self._filter

    @property
    def needs_target(self) -> bool:
        return self.of == SAMPLES  # the cut by similarity decides how many are kept

    @property
    def _filter(self) -> LeastSimilar:
        return LeastSimilar(self.fraction, self.of)

    def max_kept(self, samples: int) -> int:
        return self._filter.max_kept(samples)

    def select(self, pool: Pool) -> Indices:
        # The draw shuffles the kept candidates with `pool.seed`, so this stream must differ.
        stream, count = [*pool.seed, 1], len(pool.similarity)
        return np.random.default_rng(stream).permutation(count)[: len(self._filter.select(pool))]


@dataclass(frozen=True)
class LowestScored(BaseSelector):
    """Keep the lowest-scored fraction of the candidates that score below `below` (None: no bound): an oracle."""

    fraction: Fraction
    below: Real | None
    scored: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    def max_kept(self, samples: int) -> int:
        return fraction_of(samples, self.fraction)

    def select(self, pool: Pool) -> Indices:
        assert pool.scores is not None, "`Filter.check` requires a scorer"
        worst = lowest(pool.scores, len(pool.scores))
        if self.below is not None:
            worst = worst[pool.scores[worst] < self.below]
        return worst[: self.max_kept(len(worst))]


@dataclass(frozen=True)
class NearestBelowMean(BaseSelector):
    """Rank all candidates by how near their score is to mean - `sigmas` standard deviations, the nearest first.

    With many responses, the response with the lowest reward is a worse negative (arXiv 2502.16825, with 2 standard
    deviations). Mean and population standard deviation are over the prompt's sampled responses, repetitions included,
    empty responses and copies of the target excluded. Ties: the lower score first, then the less similar.
    """

    sigmas: NonNegative
    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    def select(self, pool: Pool) -> Indices:
        assert pool.scores is not None, "`Filter.check` requires a scorer"
        if not len(pool.scores):
            return np.arange(0)
        scores = pool.scores.astype(np.float64)
        mean = np.average(scores, weights=pool.counts)
        deviation = np.sqrt(np.average((scores - mean) ** 2, weights=pool.counts))
        return np.lexsort((scores, np.abs(scores - (mean - self.sigmas * deviation))))


@dataclass(frozen=True)
class LowestFirst(BaseSelector):
    """Rank all candidates by score, the lowest first (worst of n); ties: the least similar first."""

    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    def select(self, pool: Pool) -> Indices:
        assert pool.scores is not None, "`Filter.check` requires a scorer"
        return np.argsort(pool.scores, kind="stable")


@dataclass(frozen=True)
class LeastConsistentFirst(BaseSelector):
    """Rank all candidates by `Pool.consensus`, the lowest first; ties: the least similar first.

    A single negative is the least consistent response, as in ScPO (arXiv 2411.04109). The selector needs no target.
    """

    ranked: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    def select(self, pool: Pool) -> Indices:
        return np.argsort(pool.consensus, kind="stable")
