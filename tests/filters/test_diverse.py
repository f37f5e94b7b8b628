"""Compare the diverse selectors with plain loops, and with orders computed by hand."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import FRACTIONS, RIDGES, pool, pools

from selfcontrast.errors import UserError
from selfcontrast.filters.diverse import Clusters, LogDeterminant, MaximalMarginalRelevance, farthest_first
from selfcontrast.filters.pool import Pool


def circle(*degrees: float) -> Pool:
    """Place candidates on the unit circle, ordered by similarity to the target at 0 degrees."""
    angles = np.radians(sorted(degrees, key=lambda d: np.cos(np.radians(d))))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return replace(pool(vectors[:, 0]), similarity=vectors[:, 0], vectors=vectors)


def angles_of(candidates: Pool, kept: Any) -> list[int]:
    x, y = candidates.vectors[kept].T
    return [int(d) for d in np.degrees(np.arctan2(y, x)).round() % 360]


@given(candidates=pools(max_size=12), fraction=FRACTIONS, weight=st.floats(0, 1))
def test_mmr_minimises_its_cost_at_every_step(candidates: Pool, fraction: float, weight: float) -> None:
    order = MaximalMarginalRelevance(fraction, weight).select(candidates).tolist()
    eligible = range(int(np.floor(fraction * len(candidates.similarity) + 1e-9)))
    assert sorted(order) == list(eligible)
    similarity, vectors = candidates.similarity.astype(float), candidates.vectors.astype(float)

    def cost(i: int, taken: list[int]) -> float:
        closest = max((float(vectors[i] @ vectors[j]) for j in taken), default=-1.0)
        return weight * similarity[i] + (1 - weight) * closest

    for k, chosen in enumerate(order):
        best = min(cost(i, order[:k]) for i in eligible if i not in order[:k])
        assert cost(chosen, order[:k]) == pytest.approx(best, abs=1e-5)


def test_mmr_with_weight_of_one_orders_by_similarity() -> None:
    candidates = pool(np.linspace(-0.9, 0.9, 12))
    assert MaximalMarginalRelevance(0.5, 1.0).select(candidates).tolist() == list(range(6))


def test_mmr_order_equals_order_by_hand() -> None:
    """The cosines to the target are -0.8, -0.7 and -0.6; to the first candidate they are 0.99 and 0.48.

    After the first candidate, the second costs (-0.7 + 0.99) / 2 = 0.14 and the third (-0.6 + 0.48) / 2 = -0.06.
    """
    similarity = np.array([-0.8, -0.7, -0.6], dtype=np.float32)
    vectors = np.array([[-0.8, 0.6, 0], [-0.7, 0.51**0.5, 0], [-0.6, 0, 0.8]], dtype=np.float32)
    candidates = replace(pool(similarity), vectors=vectors)
    assert MaximalMarginalRelevance(1.0, 0.5).select(candidates).tolist() == [0, 2, 1]


# --- clusters


def lloyd(vectors: Any, centres: Any, iterations: int) -> list[int]:
    """Run k-means in plain loops. Return the labels before the last move of the centres, as SciPy does."""
    labels: list[int] = []
    for _ in range(iterations):
        labels = [int(np.argmin([np.sum((v - c) ** 2) for c in centres])) for v in vectors]
        centres = [
            np.mean([v for v, label in zip(vectors, labels, strict=True) if label == k], axis=0) if k in labels else c
            for k, c in enumerate(centres)
        ]
    return labels


@given(
    similarity=st.lists(st.floats(-0.96875, 0.96875, width=16), min_size=1, max_size=14, unique=True),
    seed=st.integers(0, 50),
    clusters=st.integers(1, 5),
    iterations=st.integers(1, 6),
)
def test_clusters_contribute_candidates_in_turn(
    similarity: list[float], seed: int, clusters: int, iterations: int
) -> None:
    candidates = pool(similarity, seed=seed, width=4)
    vectors = candidates.vectors.astype(float)
    centres = [vectors[i] for i in farthest_first(vectors, clusters)]
    labels = lloyd(vectors, centres, iterations)
    rest = {label: [i for i, other in enumerate(labels) if other == label] for label in set(labels)}
    expected: list[int] = []
    while any(rest.values()):
        expected += sorted(members.pop(0) for members in rest.values() if members)
    assert Clusters(1.0, clusters, iterations).select(candidates).tolist() == expected


def test_clusters_order_equals_order_by_hand() -> None:
    """The clusters are near 180, 90 and 300 degrees. The least similar candidate of each cluster comes first."""
    candidates = circle(180, 178, 182.5, 90, 92, 88, 300, 302, 298)
    order = angles_of(candidates, Clusters(1.0, 3, 10).select(candidates))
    assert order[:3] == [180, 92, 298]
    assert order[3:6] == [178, 90, 300]


def test_clusters_of_few_or_equal_or_no_eligible_candidates_keep_their_order() -> None:
    assert Clusters(1.0, 8, 5).select(pool([0.1, 0.2])).tolist() == [0, 1]
    assert Clusters(0.5, 8, 5).select(pool([0.1])).tolist() == []
    vectors = np.tile(np.array([[0.6, 0.8]], np.float32), (4, 1))
    same = replace(pool([0.6] * 4), vectors=vectors)
    assert Clusters(1.0, 3, 5).select(same).tolist() == [0, 1, 2, 3]


def test_farthest_first_equals_order_by_hand() -> None:
    """The point 10 is farthest from 0. Next comes 4, at distance 4 from its nearest chosen point, then 1."""
    points = np.array([[0.0], [1.0], [10.0], [4.0], [10.0]])
    assert farthest_first(points, 3).tolist() == [0, 2, 3]
    assert farthest_first(points, 9).tolist() == [0, 2, 3, 1]


# --- log-determinant


def information(vectors: Any, chosen: Any, ridge: float) -> float:
    """Return log det(I + G / ridge) of the chosen vectors."""
    rows = vectors[list(chosen)].astype(float)
    return float(np.linalg.slogdet(np.eye(len(rows)) + rows @ rows.T / ridge)[1])


@given(candidates=pools(max_size=9), fraction=FRACTIONS, ridge=RIDGES)
def test_log_determinant_adds_the_best_candidate_at_every_step(candidates: Pool, fraction: float, ridge: float) -> None:
    order, vectors = LogDeterminant(fraction, ridge).select(candidates).tolist(), candidates.vectors
    eligible = range(int(np.floor(fraction * len(vectors) + 1e-9)))
    assert sorted(order) == list(eligible)
    for k, chosen in enumerate(order):
        before = order[:k]
        best = max(information(vectors, [*before, i], ridge) for i in eligible if i not in before)
        assert information(vectors, [*before, chosen], ridge) == pytest.approx(best, abs=1e-4)


@given(
    similarity=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8),
    seed=st.integers(0, 50),
    ridge=RIDGES,
    width=st.integers(2, 6),
)
def test_log_determinant_reaches_1_minus_1_over_e_of_the_best_set(
    similarity: list[float], seed: int, ridge: float, width: int
) -> None:
    """Check the bound of Nemhauser et al. (1978) for the greedy choice, at every size, by enumeration."""
    candidates = pool(similarity, seed=seed, width=width)
    order = LogDeterminant(1.0, ridge).select(candidates).tolist()
    for size in range(1, len(similarity) + 1):
        best = max(
            information(candidates.vectors, chosen, ridge) for chosen in combinations(range(len(similarity)), size)
        )
        assert information(candidates.vectors, order[:size], ridge) >= (1 - 1 / np.e) * best - 1e-4


def test_log_determinant_ranks_the_least_similar_first_and_near_copies_last() -> None:
    """178 and 182.5 degrees are near-copies of 180; 88 and 300 are not. 88 is almost at a right angle to 180."""
    candidates = circle(180, 178, 182.5, 88, 300)
    order = angles_of(candidates, LogDeterminant(1.0, 0.1).select(candidates))
    assert order[:3] == [180, 88, 300]
    same = replace(pool([0.6] * 3), vectors=np.tile(np.array([[0.6, 0.8, 0]], np.float32), (3, 1)))
    assert sorted(LogDeterminant(1.0, 0.01).select(same).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaximalMarginalRelevance(0.0, 0.5),
        lambda: MaximalMarginalRelevance(0.5, 1.5),
        lambda: LogDeterminant(0.5, 0.0),
        lambda: LogDeterminant(1.5, 0.1),
        lambda: Clusters(0.5, 0, 5),
        lambda: Clusters(0.5, 2, 0),
    ],
)
def test_diverse_selector_invalid_settings_raise(make: Any) -> None:
    with pytest.raises(UserError, match=r"filter\.selector\."):
        make()
