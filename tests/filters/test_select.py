"""The draw of negatives: nested, seeded, the same prompts for every K; and what is refused before any compute."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import NAMES, SELECTORS, pool, pools

from selfcontrast.errors import UserError
from selfcontrast.filters.diverse import LogDeterminant
from selfcontrast.filters.select import Filter, Pool, Sampled, choose, consensus, distinct, draw, excluded, seed_of
from selfcontrast.filters.selectors import (
    Everything,
    LeastConsistent,
    LeastLikely,
    LeastSimilar,
    LowestRanked,
    LowestScored,
    NearestBelowMean,
)

SEEDS = st.integers(0, 10**6)


def own(most: int, on_shortage: str = "drop_everywhere", selector: Any = None, seed: int = 42) -> Filter:
    return Filter(selector or LeastSimilar(0.75, "distinct"), most, on_shortage, seed, None)


def drawn(settings: Filter, name: str, candidates: Pool) -> list[int]:
    return draw(settings, name, replace(candidates, seed=seed_of(settings, name))).ranks.tolist()


@given(candidates=pools(), name=NAMES, seed=SEEDS, selector=SELECTORS, most=st.integers(1, 20))
def test_a_prompt_gives_the_whole_pool_or_nothing(
    candidates: Pool, name: str, seed: int, selector: Any, most: int
) -> None:
    """Whether a prompt is used does not depend on K, and its K negatives are the first K of one list."""
    settings = own(most, "drop_everywhere", selector, seed)
    found = drawn(settings, name, candidates)
    kept = selector.select(replace(candidates, seed=seed_of(settings, name))).tolist()
    assert len(found) == (most if len(kept) >= most else 0)
    assert len(set(found)) == len(found)
    assert set(found) <= set(kept)
    if selector.ranked:
        assert found == kept[: len(found)]


@given(candidates=pools(), name=NAMES, seed=SEEDS, selector=SELECTORS, small=st.integers(1, 10), more=st.integers(1, 9))
def test_a_smaller_pool_is_the_beginning_of_a_larger(
    candidates: Pool, name: str, seed: int, selector: Any, small: int, more: int
) -> None:
    few = drawn(own(small, selector=selector, seed=seed), name, candidates)
    many = drawn(own(small + more, selector=selector, seed=seed), name, candidates)
    if many:
        assert many[:small] == few


@given(candidates=pools(), name=NAMES, seed=SEEDS, selector=SELECTORS, most=st.integers(1, 20))
def test_refill_adds_the_least_similar_of_the_rest_at_the_last_ranks(
    candidates: Pool, name: str, seed: int, selector: Any, most: int
) -> None:
    settings = own(most, "refill", selector, seed)
    candidates = replace(candidates, seed=seed_of(settings, name))
    found, kept = draw(settings, name, candidates), selector.select(candidates).tolist()
    ranks = found.ranks.tolist()
    if len(candidates.similarity) < most:
        assert ranks == []
        return
    assert len(set(ranks)) == len(ranks) == most
    assert found.refilled == max(0, most - len(kept))
    first, last = ranks[: len(kept)], ranks[len(kept) :]
    assert set(first) <= set(kept)
    assert not set(last) & set(kept)
    near = candidates.similarity
    assert all(near[i] <= near[j] for i in last for j in range(len(near)) if j not in ranks)


def test_error_names_the_prompt() -> None:
    assert len(drawn(own(3, "error"), "p7", pool(np.arange(4) / 4))) == 3
    line = r"prompt p7 leaves 3 negatives of filter\.max_negatives=4 \(4 distinct candidates\)"
    with pytest.raises(UserError, match=line):
        drawn(own(4, "error"), "p7", pool(np.arange(4) / 4))


def test_the_draw_is_random_seeded_and_by_prompt() -> None:
    candidates = pool(np.arange(32) / 32)
    first = drawn(own(16), "p1", candidates)
    assert first == drawn(own(16), "p1", candidates)
    assert first != sorted(first)  # not in order of similarity
    assert first != drawn(own(16), "p2", candidates)
    assert first != drawn(own(16, seed=43), "p1", candidates)
    # Over prompts, every kept candidate is as likely as another to be rank 0.
    ranks = np.array([drawn(own(1), f"p{i}", candidates)[0] for i in range(2400)])
    counts = np.bincount(ranks, minlength=24)
    assert len(counts) == 24
    assert (np.abs(counts - 100) < 50).all()  # five standard deviations


@given(st.lists(st.sampled_from(["", " ", "a", "a ", "b", "c", "target", " target\n"]), max_size=12))
def test_distinct_drops_empty_ones_copies_and_repetitions(texts: list[str]) -> None:
    found = distinct("target ", texts)
    stripped = [text.strip() for text in texts]
    expected = [text for text in dict.fromkeys(stripped) if text not in ("", "target")]
    assert [stripped[i] for i in found] == expected
    assert found == [stripped.index(text) for text in expected]


@given(st.lists(st.sampled_from(["", " ", "a", "target", " target\n"]), max_size=8), st.sampled_from(["target ", ""]))
def test_excluded_are_the_first_empty_text_and_the_first_copy(texts: list[str], target: str) -> None:
    stripped = [text.strip() for text in texts]
    expected = {stripped.index(text) for text in ("", target.strip()) if text in stripped}
    assert set(excluded(target, texts)) == expected
    assert len(excluded(target, texts)) == len(expected)
    left = {stripped[i] for i in [*excluded(target, texts), *distinct(target, texts)]}
    assert left == set(stripped)  # with the candidates, every distinct response


# --- what a pool knows of its candidates


def sampled(texts: list[str], vectors: Any, log_probs: Any = None) -> Sampled:
    unit = np.asarray(vectors, dtype=np.float32)
    known = np.arange(-len(texts), 0.0) if log_probs is None else np.asarray(log_probs)
    return Sampled("p", "target", unit[0], texts, unit, known, np.arange(1, len(texts) + 1))


def angle(degrees: float) -> list[float]:
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


def test_consensus_by_hand() -> None:
    """Of "a" (0 degrees, sampled twice), "b" (60) and the target (90): a agrees with a, b and the target, and so on."""
    given = sampled(["a", "b", " a", "target"], [angle(0), angle(60), angle(0), angle(90)])
    found = consensus(given, np.array([0, 1]))
    assert found == pytest.approx([(1 + 0.5 + 0) / 3, (0.5 + 0.5 + np.cos(np.radians(30))) / 3], abs=1e-6)
    assert consensus(sampled(["a"], [angle(0)]), np.array([0])).tolist() == [0]


@given(
    texts=st.lists(st.sampled_from(["", "target", "a", "b", "c", "d"]), min_size=1, max_size=12), shuffle=st.randoms()
)
def test_consensus_is_the_mean_over_all_other_responses_in_any_order(texts: list[str], shuffle: Any) -> None:
    angles = {"": 10, "target": 0, "a": 20, "b": 110, "c": 200, "d": 310}

    def of(own: list[str]) -> dict[str, float]:
        vectors = [angle(angles[text]) for text in own]
        first = {text: own.index(text) for text in own}
        found = consensus(sampled(own, vectors), np.array(list(first.values())))
        for text, value in zip(first, found, strict=True):
            others = [v for i, v in enumerate(vectors) if i != first[text]]
            plain = [float(np.dot(angle(angles[text]), other)) for other in others]
            assert value == pytest.approx(np.mean(plain) if plain else 0, abs=1e-6)
        return dict(zip(first, found.tolist(), strict=True))

    assert of(shuffle.sample(texts, len(texts))) == of(texts)


def test_a_pool_has_each_candidates_own_numbers_and_the_first_of_equal_ones() -> None:
    texts = ["a", "", "b", "a ", "target", "b", "a"]
    vectors = [angle(d) for d in (90, 45, 60, 90, 0, 60, 90)]
    pool_of = choose(
        own(2, selector=Everything()), replace(sampled(texts, vectors), target_vector=np.array([1.0, 0]))
    ).pool
    assert pool_of.log_probs.tolist() == [-7, -5]  # a, then b, which is more similar to the target
    assert pool_of.tokens.tolist() == [1, 3]
    assert pool_of.log_prob_per_token == pytest.approx([-7, -5 / 3])
    assert pool_of.counts.tolist() == [3, 2]


def test_candidates_without_log_probabilities_are_refused_in_one_line_where_they_are_needed() -> None:
    given = sampled(["a", "b", "target"], [angle(90), angle(60), angle(0)], [-1.0, np.nan, np.nan])
    line = (
        r"LeastLikely needs the sampler's log-probability of every candidate, and prompt p has 1 of 2 without: sample"
    )
    with pytest.raises(UserError, match=line) as caught:
        choose(own(1, selector=LeastLikely(1.0, "distinct")), given)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="LowestRanked needs"):
        choose(own(1, selector=LowestRanked(1.0, "distinct", ["consensus", "log_prob"])), given)
    choose(own(1, selector=LowestRanked(1.0, "distinct", ["consensus", "similarity"])), given)
    known = replace(given, log_probs=np.array([-1.0, -2.0, np.nan]))  # that of a copy of the target is not needed
    assert choose(own(2, selector=LeastLikely(1.0, "distinct")), known).drawn.kept.tolist() in ([0, 1], [1, 0])


@pytest.mark.parametrize(
    ("settings", "negatives", "samples", "line"),
    [
        (own(4), 5, 32, r"negatives=5 is more than filter\.max_negatives=4"),
        (own(16, selector=LeastSimilar(0.25, "distinct")), 16, 32, r"max_negatives=16 is impossible.*keeps 8 at most"),
        (own(16, selector=LeastSimilar(0.25, "distinct")), 1, 32, r"max_negatives=16 is impossible"),
        (own(33, selector=Everything()), 1, 32, r"max_negatives=33 is impossible"),
        (own(33, "refill"), 1, 32, r"max_negatives=33 is impossible"),
        (
            own(4, selector=LowestScored(1.0, 1.0)),
            4,
            32,
            r"filter\.selector=LowestScored needs scores, .* no verifier: add \+reward_model@filter.reward_model=",
        ),
        (
            own(4, selector=NearestBelowMean(2.0)),
            4,
            32,
            r"filter\.selector=NearestBelowMean needs scores, .* no verifier: add \+reward_model@filter.reward_model=",
        ),
        (
            own(4, selector=LeastLikely(0.5, "distinct")),
            4,
            32,
            r"selector=LeastLikely needs the sampler's log-probabilities, and this generator has none: use",
        ),
        (
            own(4, selector=LowestRanked(0.5, "distinct", ["similarity", "log_prob"])),
            4,
            32,
            r"selector=LowestRanked needs the sampler's log-probabilities",
        ),
        (own(16, selector=LeastConsistent(0.25, "samples")), 4, 32, r"max_negatives=16 is impossible.*8 at most"),
        (own(16, selector=LogDeterminant(0.25, 0.1)), 4, 32, r"max_negatives=16 is impossible.*8 at most"),
    ],
)
def test_what_cannot_be_is_refused_before_any_compute(
    settings: Filter, negatives: int, samples: int, line: str
) -> None:
    with pytest.raises(UserError, match=line):
        settings.check(negatives, samples, verified=False, log_probs=False)


def test_what_can_be() -> None:
    own(16).check(16, 32, verified=False, log_probs=False)
    own(8, selector=LeastSimilar(0.25, "distinct")).check(1, 32, verified=False, log_probs=False)
    own(16, "refill", LeastSimilar(0.25, "distinct")).check(
        16, 32, verified=False, log_probs=False
    )  # what refill is for
    own(32, selector=Everything()).check(32, 32, verified=False, log_probs=False)
    own(4, selector=LowestScored(1.0, 1.0)).check(4, 32, verified=True, log_probs=False)
    own(4, selector=LeastLikely(0.5, "distinct")).check(4, 32, verified=False, log_probs=True)
    own(4, selector=LowestRanked(0.5, "distinct", ["similarity", "consensus"])).check(4, 32, False, log_probs=False)


@pytest.mark.parametrize("make", [lambda: own(0), lambda: own(4, "ignore")])
def test_settings_that_cannot_be(make: Any) -> None:
    with pytest.raises(UserError, match=r"filter\."):
        make()
