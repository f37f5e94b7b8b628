"""Compare each selector with plain loops over its definition."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import FRACTIONS, OF, SELECTORS, SIGNALS, THRESHOLDS, pool, pools

from selfcontrast.errors import UserError
from selfcontrast.filters.pool import Pool
from selfcontrast.filters.selectors import (
    Everything,
    LeastConsistent,
    LeastConsistentFirst,
    LeastLikely,
    LeastSimilar,
    LessSimilarThan,
    LowestRanked,
    LowestScored,
    MostSimilarBelow,
    NearestBelowMean,
    Random,
    RankWindow,
)


def floor(fraction: float, count: int) -> int:
    return int(np.floor(fraction * count + 1e-9))


@given(candidates=pools(), fraction=FRACTIONS)
def test_least_similar_keeps_the_lowest_cosines(candidates: Pool, fraction: float) -> None:
    cosines = candidates.similarity.tolist()
    kept = LeastSimilar(fraction, "distinct").select(candidates).tolist()
    assert sorted(cosines[i] for i in kept) == sorted(cosines)[: floor(fraction, len(cosines))]


@given(candidates=pools(), fraction=FRACTIONS)
def test_least_similar_of_samples_follows_the_reference_implementation(candidates: Pool, fraction: float) -> None:
    """The selector keeps the cosines below the sorted cosine at index min(floor(fraction * N), distinct - 1)."""
    cosines = candidates.similarity.tolist()
    all_cosines = sorted([*cosines, *candidates.excluded.tolist()])
    count = min(floor(fraction, candidates.samples), len(all_cosines) - 1)
    expected = [x for x in cosines if all_cosines and x < all_cosines[count]]
    kept = LeastSimilar(fraction, "samples").select(candidates).tolist()
    assert sorted(cosines[i] for i in kept) == sorted(expected)
    assert len(kept) <= max(0, count)


@given(candidates=pools(), fraction=FRACTIONS, of=OF)
def test_random_keeps_as_many_candidates_as_least_similar(candidates: Pool, fraction: float, of: str) -> None:
    assert len(Random(fraction, of).select(candidates)) == len(LeastSimilar(fraction, of).select(candidates))


@pytest.mark.parametrize(
    ("distinct", "of_distinct", "of_samples"), [(32, 24, 24), (26, 19, 24), (25, 18, 24), (18, 13, 17), (2, 1, 1)]
)
def test_least_similar_keeps_known_numbers_of_32_samples(distinct: int, of_distinct: int, of_samples: int) -> None:
    candidates = pool(np.arange(distinct) / 64, repeated=32 - distinct)
    assert len(LeastSimilar(0.75, "distinct").select(candidates)) == of_distinct
    assert len(LeastSimilar(0.75, "samples").select(candidates)) == of_samples


@given(candidates=pools(), low=st.floats(0, 0.5), high=st.floats(0.55, 1))
def test_rank_window_keeps_the_ranks_inside_the_window(candidates: Pool, low: float, high: float) -> None:
    count = len(candidates.similarity)
    kept = set(RankWindow(low, high).select(candidates).tolist())
    assert kept == {i for i in range(count) if floor(low, count) <= i < floor(high, count)}


@given(candidates=pools(), threshold=THRESHOLDS)
def test_similarity_selectors_keep_cosines_below_threshold(candidates: Pool, threshold: float) -> None:
    below = [i for i, cosine in enumerate(candidates.similarity) if cosine < threshold]
    assert sorted(LessSimilarThan(threshold).select(candidates).tolist()) == below
    nearest_first = MostSimilarBelow(threshold).select(candidates).tolist()
    assert sorted(nearest_first) == below
    cosines = [float(candidates.similarity[i]) for i in nearest_first]
    assert cosines == sorted(cosines, reverse=True)


@given(candidates=pools(), fraction=FRACTIONS, below=st.one_of(st.none(), st.floats(0, 1, width=32)))
def test_lowest_scored_keeps_the_lowest_scores_below_its_bound(
    candidates: Pool, fraction: float, below: float | None
) -> None:
    assert candidates.scores is not None
    scores = candidates.scores.tolist()
    kept = LowestScored(fraction, below).select(candidates).tolist()
    eligible = [i for i, score in enumerate(scores) if below is None or score < below]
    assert set(kept) <= set(eligible)
    assert len(kept) == floor(fraction, len(eligible))
    rest = set(eligible) - set(kept)
    assert all(
        (scores[i], i) < (scores[j], j) for i in kept for j in rest
    )  # of equal scores, the least similar comes first


def lowest_fraction(candidates: Pool, values: list[float], fraction: float, of: str) -> list[int]:
    """Pick the candidate with the lowest value, of equal values the least similar, until enough are picked."""
    count = len(values)
    enough = floor(fraction, count) if of == "distinct" else min(floor(fraction, candidates.samples), count - 1)
    rest, picked = list(range(count)), list[int]()
    while len(picked) < enough:
        best = rest[0]
        for i in rest:
            if values[i] < values[best]:
                best = i
        rest.remove(best)
        picked.append(best)
    return picked


def ranks_of(values: list[float]) -> list[float]:
    return [sum(v < value for v in values) + (1 + sum(v == value for v in values)) / 2 for value in values]


@given(candidates=pools(), fraction=FRACTIONS, of=OF)
def test_least_consistent_and_least_likely_keep_the_lowest_fraction(candidates: Pool, fraction: float, of: str) -> None:
    consensus = candidates.consensus.tolist()
    assert LeastConsistent(fraction, of).select(candidates).tolist() == lowest_fraction(
        candidates, consensus, fraction, of
    )
    pairs = zip(candidates.log_probs.tolist(), candidates.tokens.tolist(), strict=True)
    per_token = [total / tokens for total, tokens in pairs]
    assert LeastLikely(fraction, of).select(candidates).tolist() == lowest_fraction(candidates, per_token, fraction, of)


@given(candidates=pools(), fraction=FRACTIONS, of=OF, signals=SIGNALS)
def test_lowest_ranked_keeps_the_lowest_sum_of_ranks(
    candidates: Pool, fraction: float, of: str, signals: list[str]
) -> None:
    pairs = zip(candidates.log_probs.tolist(), candidates.tokens.tolist(), strict=True)
    values = {
        "similarity": candidates.similarity.tolist(),
        "consensus": candidates.consensus.tolist(),
        "log_prob": [total / tokens for total, tokens in pairs],
    }
    total = [sum(ranks) for ranks in zip(*(ranks_of(values[name]) for name in signals), strict=True)]
    selector: Any = LowestRanked(fraction, of, signals)  # type: ignore[arg-type]
    assert selector.select(candidates).tolist() == lowest_fraction(candidates, total, fraction, of)


def test_selectors_use_log_probability_per_token_and_sums_of_ranks() -> None:
    """The log-probabilities per token are -1, -2 and -1.5. The second candidate has the highest sum."""
    candidates = pool(
        [0.1, 0.2, 0.3], log_probs=[-8.0, -2.0, -3.0], tokens=[8, 1, 2], consensus=np.float32([0.9, 0.8, 0.7])
    )
    assert LeastLikely(0.7, "distinct").select(candidates).tolist() == [1, 2]
    assert LeastConsistent(0.7, "distinct").select(candidates).tolist() == [2, 1]
    ranked = LowestRanked(0.34, "distinct", ["similarity", "consensus", "log_prob"])  # rank sums 7, 5, 6
    assert ranked.select(candidates).tolist() == [1]
    assert ranked.needs_log_probs
    assert not LowestRanked(0.34, "distinct", ["similarity", "consensus"]).needs_log_probs


@given(candidates=pools(), sigmas=st.floats(0, 4))
def test_nearest_below_mean_sorts_by_distance_to_the_aim(candidates: Pool, sigmas: float) -> None:
    assert candidates.scores is not None
    scores, order = candidates.scores.tolist(), NearestBelowMean(sigmas).select(candidates).tolist()
    assert sorted(order) == list(range(len(scores)))
    repeated = [s for s, times in zip(scores, candidates.counts.tolist(), strict=True) for _ in range(times)]
    if repeated:
        aim = np.mean(repeated) - sigmas * np.std(repeated)
        off = [abs(scores[i] - aim) for i in order]
        assert all(a <= b + 1e-9 for a, b in pairwise(off))


def test_nearest_below_mean_equals_order_by_hand() -> None:
    """The scores 0, 4 (three times) and 5 have mean 17 / 5 = 3.4 and standard deviation 1.74.

    The mean minus 2 deviations is -0.09, and the mean minus half a deviation is 2.53. If 4 counted only once, the mean
    would be 3, and the mean minus 2 deviations would be -1.3.
    """
    candidates = pool([0.1, 0.2, 0.3], scores=[5, 0, 4], counts=[1, 1, 3])
    assert NearestBelowMean(2.0).select(candidates).tolist() == [1, 2, 0]
    assert NearestBelowMean(0.5).select(candidates).tolist() == [2, 0, 1]
    tied = pool([0.1, 0.2, 0.3, 0.4], scores=[3, 1, 3, 1], counts=[1, 1, 1, 1])
    assert NearestBelowMean(0.0).select(tied).tolist() == [1, 3, 0, 2]  # every score is 1 away from the mean of 2
    assert NearestBelowMean(2.0).select(pool([], scores=[])).tolist() == []


def test_least_consistent_first_equals_order_by_hand() -> None:
    candidates = pool([0.1, 0.2, 0.3, 0.4], consensus=np.array([0.5, 0.2, 0.9, 0.2]))
    assert LeastConsistentFirst().select(candidates).tolist() == [
        1,
        3,
        0,
        2,
    ]  # of equal candidates, the least similar comes first


def test_random_is_uniform_over_seeds() -> None:
    seeded_pools = [pool(np.arange(8) / 8, seed=seed) for seed in range(800)]
    counts = np.bincount(
        np.concatenate([Random(0.25, "distinct").select(candidates) for candidates in seeded_pools]), minlength=8
    )
    assert counts.sum() == 1600
    assert (np.abs(counts - 200) < 62).all()  # five standard deviations of a binomial, n = 800 and p = 1/4


@given(candidates=pools(), selector=SELECTORS)
def test_selected_candidates_are_distinct_repeatable_and_at_most_max_kept(candidates: Pool, selector: Any) -> None:
    kept = selector.select(candidates).tolist()
    count = len(candidates.similarity)
    assert len(set(kept)) == len(kept) <= min(count, selector.max_kept(candidates.samples))
    assert 0 <= selector.max_kept(count) <= count
    assert set(kept) <= set(range(count))
    assert kept == selector.select(candidates).tolist()


@pytest.mark.parametrize(
    ("fraction", "samples", "max_kept"), [(0.75, 32, 24), (0.25, 32, 8), (0.1, 30, 3), (1.0, 7, 7)]
)
def test_max_kept_rounds_down_without_floating_point_error(fraction: float, samples: int, max_kept: int) -> None:
    assert LeastSimilar(fraction, "distinct").max_kept(samples) == max_kept
    assert Random(fraction, "distinct").max_kept(samples) == max_kept
    assert LowestScored(fraction, None).max_kept(samples) == max_kept
    assert (
        LeastConsistent(fraction, "distinct").max_kept(samples)
        == LeastLikely(fraction, "distinct").max_kept(samples)
        == max_kept
    )


def test_max_kept_of_samples_is_below_the_number_of_samples() -> None:
    assert LeastSimilar(1.0, "samples").max_kept(7) == Random(1.0, "samples").max_kept(7) == 6
    assert LeastSimilar(0.75, "samples").max_kept(32) == LeastConsistent(0.75, "samples").max_kept(32) == 24
    assert LeastLikely(1.0, "samples").max_kept(7) == 6


def test_max_kept_of_window_and_threshold_selectors_equals_count_by_hand() -> None:
    assert RankWindow(0.25, 0.75).max_kept(32) == 16
    assert RankWindow(0.0, 1.0).max_kept(7) == 7
    assert LessSimilarThan(0.5).max_kept(7) == MostSimilarBelow(0.5).max_kept(7) == Everything().max_kept(7) == 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: LeastSimilar(0.0, "distinct"),
        lambda: LeastSimilar(1.1, "distinct"),
        lambda: Random(0.0, "distinct"),
        lambda: LeastSimilar(0.5, "everything"),
        lambda: Random(0.5, "everything"),
        lambda: RankWindow(0.5, 0.5),
        lambda: RankWindow(-0.1, 0.5),
        lambda: RankWindow(0.5, 1.1),
        lambda: LessSimilarThan(-1.0),
        lambda: MostSimilarBelow(1.2),
        lambda: LowestScored(0.0, None),
        lambda: LeastConsistent(0.0, "distinct"),
        lambda: LeastLikely(0.5, "everything"),
        lambda: LowestRanked(1.5, "distinct", ["similarity", "consensus"]),
        lambda: LowestRanked(0.5, "distinct", ["similarity"]),
        lambda: LowestRanked(0.5, "distinct", ["similarity", "similarity"]),
        lambda: NearestBelowMean(-1.0),
    ],
)
def test_selector_invalid_settings_raise(make: Any) -> None:
    with pytest.raises(UserError, match=r"filter\.selector\."):
        make()


def test_rank_window_max_kept_holds_for_fewer_distinct_candidates() -> None:
    window = RankWindow(0.5, 0.59375)
    assert (window.max_kept(7), window.max_kept(8)) == (
        1,
        1,
    )  # the window keeps none of 8 distinct candidates, and one of 7
