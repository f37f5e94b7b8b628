"""Each selector against an independent one: plain loops over the definition."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import BARS, OF, SELECTORS, SHARES, pool, pools

from selfcontrast.errors import UserError
from selfcontrast.filters.select import Pool
from selfcontrast.filters.selectors import (
    Everything,
    LeastSimilar,
    LessSimilarThan,
    LowestScored,
    MostSimilarBelow,
    Random,
    RankWindow,
)


def floor(share: float, count: int) -> int:
    return int(np.floor(share * count + 1e-9))


@given(candidates=pools(), share=SHARES)
def test_the_kept_are_the_least_similar_share(candidates: Pool, share: float) -> None:
    near = candidates.similarity.tolist()
    kept = LeastSimilar(share, "distinct").keep(candidates).tolist()
    assert sorted(near[i] for i in kept) == sorted(near)[: floor(share, len(near))]


@given(candidates=pools(), share=SHARES)
def test_a_share_of_the_samples_keeps_what_is_less_similar_than_the_next_distinct_response(
    candidates: Pool, share: float
) -> None:
    """By the reference implementation's words: of the distinct responses min(floor(share·N), distinct - 1)."""
    near = candidates.similarity.tolist()
    every = sorted([*near, *candidates.excluded.tolist()])
    count = min(floor(share, candidates.samples), len(every) - 1)
    expected = [x for x in near if every and x < every[count]]
    kept = LeastSimilar(share, "samples").keep(candidates).tolist()
    assert sorted(near[i] for i in kept) == sorted(expected)
    assert len(kept) <= max(0, count)


@given(candidates=pools(), share=SHARES, of=OF)
def test_the_random_control_keeps_as_many_as_the_filter(candidates: Pool, share: float, of: str) -> None:
    assert len(Random(share, of).keep(candidates)) == len(LeastSimilar(share, of).keep(candidates))


@pytest.mark.parametrize(
    ("distinct", "of_distinct", "of_samples"), [(32, 24, 24), (26, 19, 24), (25, 18, 24), (18, 13, 17), (2, 1, 1)]
)
def test_how_many_are_kept_of_32_samples(distinct: int, of_distinct: int, of_samples: int) -> None:
    candidates = pool(np.arange(distinct) / 64, repeated=32 - distinct)
    assert len(LeastSimilar(0.75, "distinct").keep(candidates)) == of_distinct
    assert len(LeastSimilar(0.75, "samples").keep(candidates)) == of_samples


@given(candidates=pools(), low=st.floats(0, 0.5), high=st.floats(0.55, 1))
def test_a_window_leaves_out_what_is_before_and_after(candidates: Pool, low: float, high: float) -> None:
    count = len(candidates.similarity)
    kept = set(RankWindow(low, high).keep(candidates).tolist())
    assert kept == {i for i in range(count) if floor(low, count) <= i < floor(high, count)}


@given(candidates=pools(), bar=BARS)
def test_bars(candidates: Pool, bar: float) -> None:
    below = [i for i, near in enumerate(candidates.similarity) if near < bar]
    assert sorted(LessSimilarThan(bar).keep(candidates).tolist()) == below
    nearest_first = MostSimilarBelow(bar).keep(candidates).tolist()
    assert sorted(nearest_first) == below
    near = [float(candidates.similarity[i]) for i in nearest_first]
    assert near == sorted(near, reverse=True)


@given(candidates=pools(), share=SHARES, below=st.one_of(st.none(), st.floats(0, 1, width=32)))
def test_the_oracle_keeps_the_lowest_scores_below_its_bar(candidates: Pool, share: float, below: float | None) -> None:
    assert candidates.scores is not None
    scores = candidates.scores.tolist()
    kept = LowestScored(share, below).keep(candidates).tolist()
    eligible = [i for i, score in enumerate(scores) if below is None or score < below]
    assert set(kept) <= set(eligible)
    assert len(kept) == floor(share, len(eligible))
    left = set(eligible) - set(kept)
    assert all((scores[i], i) < (scores[j], j) for i in kept for j in left)  # ties: the least similar first


def test_a_random_share_depends_on_the_seed_and_every_candidate_is_as_likely() -> None:
    seeds = [pool(np.arange(8) / 8, seed=seed) for seed in range(800)]
    counts = np.bincount(
        np.concatenate([Random(0.25, "distinct").keep(candidates) for candidates in seeds]), minlength=8
    )
    assert counts.sum() == 1600
    assert (np.abs(counts - 200) < 62).all()  # five standard deviations of a binomial of 800 at a quarter


@given(candidates=pools(), selector=SELECTORS)
def test_what_is_kept_is_distinct_at_most_what_was_said_and_the_same_again(candidates: Pool, selector: Any) -> None:
    kept = selector.keep(candidates).tolist()
    count = len(candidates.similarity)
    assert len(set(kept)) == len(kept) <= min(count, selector.most(candidates.samples))
    assert 0 <= selector.most(count) <= count
    assert set(kept) <= set(range(count))
    assert kept == selector.keep(candidates).tolist()


@pytest.mark.parametrize(("share", "samples", "most"), [(0.75, 32, 24), (0.25, 32, 8), (0.1, 30, 3), (1.0, 7, 7)])
def test_a_share_is_rounded_down_but_not_by_floating_point(share: float, samples: int, most: int) -> None:
    assert LeastSimilar(share, "distinct").most(samples) == most
    assert Random(share, "distinct").most(samples) == most
    assert LowestScored(share, None).most(samples) == most


def test_a_share_of_the_samples_never_keeps_all_distinct_responses() -> None:
    assert LeastSimilar(1.0, "samples").most(7) == Random(1.0, "samples").most(7) == 6
    assert LeastSimilar(0.75, "samples").most(32) == 24


def test_the_most_a_window_and_a_bar_can_keep() -> None:
    assert RankWindow(0.25, 0.75).most(32) == 16
    assert RankWindow(0.0, 1.0).most(7) == 7
    assert LessSimilarThan(0.5).most(7) == MostSimilarBelow(0.5).most(7) == Everything().most(7) == 7


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
    ],
)
def test_settings_that_cannot_be(make: Any) -> None:
    with pytest.raises(UserError, match=r"filter\.selector\."):
        make()
