"""Selectors that look at what candidates have in common: negatives that differ from each other, not only from y+.

Both give their own order, in which every beginning is diverse: rank k is chosen in view of the ranks before it.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from selfcontrast.constrained import Count, Fraction, Probability, check_numbers
from selfcontrast.filters.select import Floats, Indices, Pool
from selfcontrast.filters.selectors import share_of

SAME = 1e-3  # vectors nearer than this differ by no more than they are stored with


@dataclass(frozen=True)
class MaximalMarginalRelevance:
    """Of the least similar share, one after another that is far from the target and from those taken before.

    The next one has the lowest `weight` * cos(candidate, target) + (1 - weight) * max cos(candidate, one taken):
    maximal marginal relevance (Carbonell and Goldstein, 1998), where being unlike the target is what is relevant.
    """

    share: Fraction
    weight: Probability
    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def most(self, samples: int) -> int:
        return share_of(samples, self.share)

    def keep(self, pool: Pool) -> Indices:
        count = self.most(len(pool.similarity))
        near, alike = pool.similarity[:count], pool.vectors[:count] @ pool.vectors[:count].T
        closest = np.full(count, -1.0)  # cosine of each to the most similar one taken
        free = np.ones(count, dtype=bool)
        taken = np.empty(count, dtype=np.intp)
        for k in range(count):
            cost = self.weight * near + (1 - self.weight) * closest
            taken[k] = np.where(free, cost, np.inf).argmin()
            free[taken[k]] = False
            closest = np.maximum(closest, alike[taken[k]])
        return taken


@dataclass(frozen=True)
class Clusters:
    """Of the least similar share, one from each k-means cluster in turn, each cluster's least similar first.

    Within a turn, too, the least similar comes first. Centres begin at the least similar candidate and then, again and
    again, at the one farthest from all of them: nothing is random.
    """

    share: Fraction
    clusters: Count
    iterations: Annotated[Count, Field(le=1_000_000)]
    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def most(self, samples: int) -> int:
        return share_of(samples, self.share)

    def keep(self, pool: Pool) -> Indices:
        from scipy.cluster.vq import kmeans2

        count = self.most(len(pool.similarity))
        if not count:
            return np.arange(0)
        vectors = pool.vectors[:count].astype(np.float64)
        centres = vectors[farthest_first(vectors, min(self.clusters, count))]
        _, labels = kmeans2(vectors, centres, iter=self.iterations, minit="matrix")
        turn = np.zeros(count, dtype=np.intp)  # how many of its cluster come before it
        for label in np.unique(labels):
            turn[labels == label] = np.arange((labels == label).sum())
        return np.lexsort((np.arange(count), turn))


def farthest_first(vectors: Floats, count: int) -> Indices:
    """Indices of `count` vectors, or of all different ones: the first, then the farthest from those chosen so far."""
    chosen = [0]
    distance = np.linalg.norm(vectors - vectors[0], axis=1)
    while len(chosen) < count and distance.max() > SAME:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
    return np.array(chosen)
