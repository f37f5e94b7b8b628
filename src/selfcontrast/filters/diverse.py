"""Selectors of diverse negatives, which differ from each other and not only from y+.

Each selector ranks the candidates that it keeps. Rank k is selected given the ranks before it, so every prefix is
diverse.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from selfcontrast.constrained import Count, Fraction, Positive, Probability
from selfcontrast.filters.pool import Floats, Indices, Pool
from selfcontrast.filters.selectors import BaseSelector, fraction_of

SAME = 1e-3  # vectors nearer than this cannot be told apart in half precision


@dataclass(frozen=True)
class DiverseSelector(BaseSelector):
    """A selector that ranks the least similar fraction of the candidates.

    Attributes:
        fraction: the fraction to select from, least similar first.
    """

    fraction: Fraction
    ranked: ClassVar[bool] = True

    def max_kept(self, samples: int) -> int:
        return fraction_of(samples, self.fraction)


@dataclass(frozen=True)
class MaximalMarginalRelevance(DiverseSelector):
    """Select candidates one after another, each far from the target and from the candidates selected before.

    This is maximal marginal relevance (Carbonell and Goldstein, 1998) with dissimilarity to the target as relevance.
    Each step selects the candidate c that minimises weight * cos(c, target) + (1 - weight) * max_s cos(c, s) over the
    candidates s selected before.
    """

    weight: Probability

    def select(self, pool: Pool) -> Indices:
        count = self.max_kept(len(pool.similarity))
        to_target, cosines = pool.similarity[:count], pool.vectors[:count] @ pool.vectors[:count].T
        to_selected = np.full(count, -1.0)  # cosine of each candidate to the nearest selected one
        free = np.ones(count, dtype=bool)
        selected = np.empty(count, dtype=np.intp)
        for k in range(count):
            cost = self.weight * to_target + (1 - self.weight) * to_selected
            selected[k] = np.where(free, cost, np.inf).argmin()
            free[selected[k]] = False
            to_selected = np.maximum(to_selected, cosines[selected[k]])
        return selected


@dataclass(frozen=True)
class Clusters(DiverseSelector):
    """Take one candidate from each k-means cluster in turn, the least similar of each cluster first.

    Within a turn, too, the least similar candidate comes first. The first initial centre is the least similar
    candidate; each further one is the candidate farthest from the centres so far. So nothing is random.
    """

    clusters: Count
    iterations: Annotated[Count, Field(le=1_000_000)]

    def select(self, pool: Pool) -> Indices:
        from scipy.cluster.vq import kmeans2

        count = self.max_kept(len(pool.similarity))
        if not count:
            return np.arange(0)
        vectors = pool.vectors[:count].astype(np.float64)
        centres = vectors[farthest_first(vectors, min(self.clusters, count))]
        _, labels = kmeans2(vectors, centres, iter=self.iterations, minit="matrix")
        turn = np.zeros(count, dtype=np.intp)  # number of candidates of its cluster that come before it
        for label in np.unique(labels):
            turn[labels == label] = np.arange((labels == label).sum())
        return np.lexsort((np.arange(count), turn))


@dataclass(frozen=True)
class LogDeterminant(DiverseSelector):
    """Greedily select the candidate that adds most to log det(I + G / ridge): a D-optimal design.

    G holds the cosines between the selected candidates. The determinant grows with the volume that they span, so each
    new candidate points in a new direction. The first is the least similar. The greedy set reaches at least 1 - 1/e of
    the best set's value (Nemhauser et al., 1978). MASS-DPO (arXiv 2605.10784) does this with the Fisher information of
    the preference model; here the features are the embeddings, and all candidates weigh the same.

    Attributes:
        ridge: below about 1, a near-copy of a selected candidate adds almost nothing; far above 1, all candidates add
            nearly the same.
    """

    ridge: Annotated[Positive, Field(ge=1e-6)]

    def select(self, pool: Pool) -> Indices:
        count = self.max_kept(len(pool.similarity))
        vectors = pool.vectors[:count].astype(np.float64)
        design = vectors @ vectors.T / self.ridge
        np.fill_diagonal(design, 1 + 1 / self.ridge)  # exact, so that rounding does not decide the first selection
        residual = np.diag(design).copy()  # exp of each candidate's gain: its variance given the selected candidates
        factors = np.zeros((count, count))  # rows of the incremental Cholesky factor (Chen et al., 2018)
        selected = np.empty(count, dtype=np.intp)
        for k in range(count):
            selected[k] = best = int(residual.argmax())
            factors[k] = (design[best] - factors[:k, best] @ factors[:k]) / np.sqrt(residual[best])
            residual = residual - factors[k] ** 2
            residual[best] = -np.inf
        return selected


def farthest_first(vectors: Floats, count: int) -> Indices:
    """Return indices of `count` vectors (or all distinct ones): the first, then always the farthest from the chosen."""
    chosen = [0]
    distance = np.linalg.norm(vectors - vectors[0], axis=1)
    while len(chosen) < count and distance.max() > SAME:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
    return np.array(chosen)
