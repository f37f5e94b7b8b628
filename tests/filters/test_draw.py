"""Test the draw of negatives: all or none, nested in K, random with a seed, and `on_shortage`."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import NAMES, SEEDS, SELECTORS, angle, filter_settings, pool, pools, sampled_prompt

from selfcontrast.errors import UserError
from selfcontrast.filters.draw import choose, draw, seed_of
from selfcontrast.filters.pool import Pool
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import Everything, LeastLikely, LowestRanked


def draw_ranks(settings: Filter, name: str, candidates: Pool) -> list[int]:
    return draw(settings, name, replace(candidates, seed=seed_of(settings, name))).ranks.tolist()


@given(candidates=pools(), name=NAMES, seed=SEEDS, selector=SELECTORS, max_negatives=st.integers(1, 20))
def test_draw_gives_all_max_negatives_or_none(
    candidates: Pool, name: str, seed: int, selector: Any, max_negatives: int
) -> None:
    settings = filter_settings(max_negatives, "drop_everywhere", selector, seed)
    ranks = draw_ranks(settings, name, candidates)
    kept = selector.select(replace(candidates, seed=seed_of(settings, name))).tolist()
    assert len(ranks) == (max_negatives if len(kept) >= max_negatives else 0)
    assert len(set(ranks)) == len(ranks)
    assert set(ranks) <= set(kept)
    if selector.ranked:
        assert ranks == kept[: len(ranks)]


@given(candidates=pools(), name=NAMES, seed=SEEDS, selector=SELECTORS, small=st.integers(1, 10), more=st.integers(1, 9))
def test_draw_is_nested_in_max_negatives(
    candidates: Pool, name: str, seed: int, selector: Any, small: int, more: int
) -> None:
    few = draw_ranks(filter_settings(small, selector=selector, seed=seed), name, candidates)
    many = draw_ranks(filter_settings(small + more, selector=selector, seed=seed), name, candidates)
    if many:
        assert many[:small] == few


@given(candidates=pools(), name=NAMES, seed=SEEDS, selector=SELECTORS, max_negatives=st.integers(1, 20))
def test_draw_refill_appends_the_least_similar_rejected_candidates(
    candidates: Pool, name: str, seed: int, selector: Any, max_negatives: int
) -> None:
    settings = filter_settings(max_negatives, "refill", selector, seed)
    candidates = replace(candidates, seed=seed_of(settings, name))
    result, kept = draw(settings, name, candidates), selector.select(candidates).tolist()
    ranks = result.ranks.tolist()
    if len(candidates.similarity) < max_negatives:
        assert ranks == []
        return
    assert len(set(ranks)) == len(ranks) == max_negatives
    assert result.refilled == max(0, max_negatives - len(kept))
    first, last = ranks[: len(kept)], ranks[len(kept) :]
    assert set(first) <= set(kept)
    assert not set(last) & set(kept)
    similarity = candidates.similarity
    unused = [i for i in range(len(similarity)) if i not in ranks]
    assert all(similarity[i] <= similarity[j] for i in last for j in unused)


def test_draw_on_shortage_error_names_the_prompt() -> None:
    assert len(draw_ranks(filter_settings(3, "error"), "p7", pool(np.arange(4) / 4))) == 3
    with pytest.raises(UserError, match=r"prompt p7 .* 3 of filter\.max_negatives=4 .*4 distinct"):
        draw_ranks(filter_settings(4, "error"), "p7", pool(np.arange(4) / 4))


def test_draw_is_random_and_seeded_per_prompt() -> None:
    candidates = pool(np.arange(32) / 32)
    first = draw_ranks(filter_settings(16), "p1", candidates)
    assert first == draw_ranks(filter_settings(16), "p1", candidates)
    assert first != sorted(first)  # not in order of similarity
    assert first != draw_ranks(filter_settings(16), "p2", candidates)
    assert first != draw_ranks(filter_settings(16, seed=43), "p1", candidates)
    # Over prompts, all kept candidates are equally likely at rank 0.
    ranks = np.array([draw_ranks(filter_settings(1), f"p{i}", candidates)[0] for i in range(2400)])
    counts = np.bincount(ranks, minlength=24)
    assert len(counts) == 24
    assert (np.abs(counts - 100) < 50).all()  # five standard deviations


def test_choose_pool_has_the_numbers_of_the_first_of_equal_texts() -> None:
    texts = ["a", "", "b", "a ", "target", "b", "a"]
    vectors = [angle(d) for d in (90, 45, 60, 90, 0, 60, 90)]
    built = choose(
        filter_settings(2, selector=Everything()),
        replace(sampled_prompt(texts, vectors), target_vector=np.array([1.0, 0])),
    ).pool
    assert built.log_probs.tolist() == [-7, -5]  # first a, then b, which is more similar to the target
    assert built.tokens.tolist() == [1, 3]
    assert built.log_prob_per_token == pytest.approx([-7, -5 / 3])
    assert built.counts.tolist() == [3, 2]


def test_choose_without_needed_log_probabilities_raises() -> None:
    candidates = sampled_prompt(["a", "b", "target"], [angle(90), angle(60), angle(0)], [-1.0, np.nan, np.nan])
    with pytest.raises(UserError, match=r"LeastLikely .*log-probability.* 1 of 2 .* prompt p ") as caught:
        choose(filter_settings(1, selector=LeastLikely(1.0, "distinct")), candidates)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"LowestRanked .*log-probability"):
        choose(filter_settings(1, selector=LowestRanked(1.0, "distinct", ["consensus", "log_prob"])), candidates)
    choose(filter_settings(1, selector=LowestRanked(1.0, "distinct", ["consensus", "similarity"])), candidates)
    # The copy of the target needs no log-probability.
    known = replace(candidates, log_probs=np.array([-1.0, -2.0, np.nan]))
    assert choose(filter_settings(2, selector=LeastLikely(1.0, "distinct")), known).drawn.kept.tolist() in (
        [0, 1],
        [1, 0],
    )
