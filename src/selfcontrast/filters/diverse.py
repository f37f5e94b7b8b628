"""Selectors that look at what candidates have in common: negatives that differ from each other, not only from y+.

All give their own order, in which every beginning is diverse: rank k is chosen in view of the ranks before it.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from selfcontrast.constrained import Count, Fraction, Positive, Probability, check_numbers
from selfcontrast.filters.select import Floats, Indices, Pool
from selfcontrast.filters.selectors import fraction_of

SAME = 1e-3  # vectors nearer than this differ by no more than they are stored with


@dataclass(frozen=True)
class MaximalMarginalRelevance:
    """Of the least similar share, one after another that is far from the target and from those taken before.

    The next one has the lowest `weight` * cos(candidate, target) + (1 - weight) * max cos(candidate, one taken):
    maximal marginal relevance (Carbonell and Goldstein, 1998), where being unlike the target is what is relevant.
    """

    fraction: Fraction
    weight: Probability
    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def max_kept(self, samples: int) -> int:
        return fraction_of(samples, self.fraction)

    def select(self, pool: Pool) -> Indices:
        count = self.max_kept(len(pool.similarity))
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

    fraction: Fraction
    clusters: Count
    iterations: Annotated[Count, Field(le=1_000_000)]
    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def max_kept(self, samples: int) -> int:
        return fraction_of(samples, self.fraction)

    def select(self, pool: Pool) -> Indices:
        from scipy.cluster.vq import kmeans2

        count = self.max_kept(len(pool.similarity))
        if not count:
            return np.arange(0)
        vectors = pool.vectors[:count].astype(np.float64)
        centres = vectors[farthest_first(vectors, min(self.clusters, count))]
        _, labels = kmeans2(vectors, centres, iter=self.iterations, minit="matrix")
        turn = np.zeros(count, dtype=np.intp)  # how many of its cluster come before it
        for label in np.unique(labels):
            turn[labels == label] = np.arange((labels == label).sum())
        return np.lexsort((np.arange(count), turn))


@dataclass(frozen=True)
class LogDeterminant:
    """Of the least similar share, one after another that adds most to log det(I + G / ridge), the D-optimal design.

    G is the matrix of cosines between those taken: the determinant grows with the volume that they span, so each next
    one points where none taken does. The first is the least similar. Greedy choice is within 1 - 1/e of the best set
    (Nemhauser et al., 1978). MASS-DPO (arXiv 2605.10784) chooses so by the Fisher information of the preference model;
    here the features are the embeddings, and all candidates weigh the same.

    Attributes:
        fraction: of the candidates, least similar first, that are chosen from.
        ridge: below about 1, near-copies of one taken add next to nothing; far above 1, each adds nearly the same.
    """

    fraction: Fraction
    ridge: Annotated[Positive, Field(ge=1e-6)]
    ranked: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "filter.selector")

    def max_kept(self, samples: int) -> int:
        return fraction_of(samples, self.fraction)

    def select(self, pool: Pool) -> Indices:
        count = self.max_kept(len(pool.similarity))
        vectors = pool.vectors[:count].astype(np.float64)
        design = vectors @ vectors.T / self.ridge
        np.fill_diagonal(design, 1 + 1 / self.ridge)  # length one exactly, so that the first choice is no rounding
        left = np.diag(design).copy()  # exp(what each adds): what of it the ones taken do not explain
        factors = np.zeros((count, count))  # rows of the incremental Cholesky factor (Chen et al., 2018)
        taken = np.empty(count, dtype=np.intp)
        for k in range(count):
            taken[k] = best = int(left.argmax())
            factors[k] = (design[best] - factors[:k, best] @ factors[:k]) / np.sqrt(left[best])
            left = left - factors[k] ** 2
            left[best] = -np.inf
        return taken


def farthest_first(vectors: Floats, count: int) -> Indices:
    """Indices of `count` vectors, or of all different ones: the first, then the farthest from those chosen so far."""
    chosen = [0]
    distance = np.linalg.norm(vectors - vectors[0], axis=1)
    while len(chosen) < count and distance.max() > SAME:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
    return np.array(chosen)
