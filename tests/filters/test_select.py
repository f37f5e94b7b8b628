"""The draw of negatives: nested, seeded, with the same prompts for every K; and the checks before any compute."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import NAMES, SELECTORS, pool, pools

from selfcontrast.errors import UserError
from selfcontrast.filters.diverse import LogDeterminant
from selfcontrast.filters.select import (
    Filter,
    Pool,
    SampledPrompt,
    choose,
    consensus,
    distinct,
    draw,
    excluded,
    seed_of,
)
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


def config(max_negatives: int, on_shortage: str = "drop_everywhere", selector: Any = None, seed: int = 42) -> Filter:
    return Filter(selector or LeastSimilar(0.75, "distinct"), max_negatives, on_shortage, seed, None)


def draw_ranks(settings: Filter, name: str, candidates: Pool) -> list[int]:
    return draw(settings, name, replace(candidates, seed=seed_of(settings, name))).ranks.tolist()


@given(candidates=pools(), name=NAMES, seed=SEEDS, selector=SELECTORS, max_negatives=st.integers(1, 20))
def test_draw_gives_all_max_negatives_or_none(
    candidates: Pool, name: str, seed: int, selector: Any, max_negatives: int
) -> None:
    settings = config(max_negatives, "drop_everywhere", selector, seed)
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
    few = draw_ranks(config(small, selector=selector, seed=seed), name, candidates)
    many = draw_ranks(config(small + more, selector=selector, seed=seed), name, candidates)
    if many:
        assert many[:small] == few


@given(candidates=pools(), name=NAMES, seed=SEEDS, selector=SELECTORS, max_negatives=st.integers(1, 20))
def test_draw_refill_appends_the_least_similar_rejected_candidates(
    candidates: Pool, name: str, seed: int, selector: Any, max_negatives: int
) -> None:
    settings = config(max_negatives, "refill", selector, seed)
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
    near = candidates.similarity
    assert all(near[i] <= near[j] for i in last for j in range(len(near)) if j not in ranks)


def test_draw_on_shortage_error_names_the_prompt() -> None:
    assert len(draw_ranks(config(3, "error"), "p7", pool(np.arange(4) / 4))) == 3
    with pytest.raises(UserError, match=r"prompt p7 .* 3 of filter\.max_negatives=4 .*4 distinct"):
        draw_ranks(config(4, "error"), "p7", pool(np.arange(4) / 4))


def test_draw_is_random_and_seeded_per_prompt() -> None:
    candidates = pool(np.arange(32) / 32)
    first = draw_ranks(config(16), "p1", candidates)
    assert first == draw_ranks(config(16), "p1", candidates)
    assert first != sorted(first)  # not in order of similarity
    assert first != draw_ranks(config(16), "p2", candidates)
    assert first != draw_ranks(config(16, seed=43), "p1", candidates)
    # Over prompts, all kept candidates are equally likely at rank 0.
    ranks = np.array([draw_ranks(config(1), f"p{i}", candidates)[0] for i in range(2400)])
    counts = np.bincount(ranks, minlength=24)
    assert len(counts) == 24
    assert (np.abs(counts - 100) < 50).all()  # five standard deviations


@given(st.lists(st.sampled_from(["", " ", "a", "a ", "b", "c", "target", " target\n"]), max_size=12))
def test_distinct_drops_empty_ones_copies_and_repetitions(texts: list[str]) -> None:
    indices = distinct("target ", texts)
    stripped = [text.strip() for text in texts]
    expected = [text for text in dict.fromkeys(stripped) if text not in ("", "target")]
    assert [stripped[i] for i in indices] == expected
    assert indices == [stripped.index(text) for text in expected]


@given(st.lists(st.sampled_from(["", " ", "a", "target", " target\n"]), max_size=8), st.sampled_from(["target ", ""]))
def test_excluded_returns_the_first_empty_text_and_the_first_copy(texts: list[str], target: str) -> None:
    stripped = [text.strip() for text in texts]
    expected = {stripped.index(text) for text in ("", target.strip()) if text in stripped}
    assert set(excluded(target, texts)) == expected
    assert len(excluded(target, texts)) == len(expected)
    together = {stripped[i] for i in [*excluded(target, texts), *distinct(target, texts)]}
    assert together == set(stripped)


# --- consensus and the pool


def sampled(texts: list[str], vectors: Any, log_probs: Any = None) -> SampledPrompt:
    unit = np.asarray(vectors, dtype=np.float32)
    known = np.arange(-len(texts), 0.0) if log_probs is None else np.asarray(log_probs)
    return SampledPrompt("p", "target", unit[0], texts, unit, known, np.arange(1, len(texts) + 1))


def angle(degrees: float) -> list[float]:
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


def test_consensus_by_hand() -> None:
    """Responses: "a" (0 degrees, sampled twice), "b" (60), the target (90)."""
    candidates = sampled(["a", "b", " a", "target"], [angle(0), angle(60), angle(0), angle(90)])
    means = consensus(candidates, np.array([0, 1]))
    assert means == pytest.approx([(1 + 0.5 + 0) / 3, (0.5 + 0.5 + np.cos(np.radians(30))) / 3], abs=1e-6)
    assert consensus(sampled(["a"], [angle(0)]), np.array([0])).tolist() == [0]


@given(
    texts=st.lists(st.sampled_from(["", "target", "a", "b", "c", "d"]), min_size=1, max_size=12), shuffle=st.randoms()
)
def test_consensus_equals_a_plain_loop_in_any_order(texts: list[str], shuffle: Any) -> None:
    angles = {"": 10, "target": 0, "a": 20, "b": 110, "c": 200, "d": 310}

    def of(ordered: list[str]) -> dict[str, float]:
        vectors = [angle(angles[text]) for text in ordered]
        first = {text: ordered.index(text) for text in ordered}
        means = consensus(sampled(ordered, vectors), np.array(list(first.values())))
        for text, value in zip(first, means, strict=True):
            others = [v for i, v in enumerate(vectors) if i != first[text]]
            plain = [float(np.dot(angle(angles[text]), other)) for other in others]
            assert value == pytest.approx(np.mean(plain) if plain else 0, abs=1e-6)
        return dict(zip(first, means.tolist(), strict=True))

    assert of(shuffle.sample(texts, len(texts))) == of(texts)


def test_choose_pool_keeps_the_numbers_of_the_first_of_equal_texts() -> None:
    texts = ["a", "", "b", "a ", "target", "b", "a"]
    vectors = [angle(d) for d in (90, 45, 60, 90, 0, 60, 90)]
    built = choose(
        config(2, selector=Everything()), replace(sampled(texts, vectors), target_vector=np.array([1.0, 0]))
    ).pool
    assert built.log_probs.tolist() == [-7, -5]  # a, then b, which is more similar to the target
    assert built.tokens.tolist() == [1, 3]
    assert built.log_prob_per_token == pytest.approx([-7, -5 / 3])
    assert built.counts.tolist() == [3, 2]


def test_choose_without_needed_log_probabilities_raises() -> None:
    candidates = sampled(["a", "b", "target"], [angle(90), angle(60), angle(0)], [-1.0, np.nan, np.nan])
    with pytest.raises(UserError, match=r"LeastLikely .*log-probability.* 1 of 2 .* prompt p ") as caught:
        choose(config(1, selector=LeastLikely(1.0, "distinct")), candidates)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"LowestRanked .*log-probability"):
        choose(config(1, selector=LowestRanked(1.0, "distinct", ["consensus", "log_prob"])), candidates)
    choose(config(1, selector=LowestRanked(1.0, "distinct", ["consensus", "similarity"])), candidates)
    known = replace(candidates, log_probs=np.array([-1.0, -2.0, np.nan]))  # that of a copy of the target is not needed
    assert choose(config(2, selector=LeastLikely(1.0, "distinct")), known).drawn.kept.tolist() in ([0, 1], [1, 0])


@pytest.mark.parametrize(
    ("settings", "negatives", "samples", "line"),
    [
        (config(4), 5, 32, r"negatives=5 .*filter\.max_negatives=4"),
        (
            config(16, selector=LeastSimilar(0.25, "distinct")),
            16,
            32,
            r"max_negatives=16 .* 8 of generator\.samples=32",
        ),
        (config(16, selector=LeastSimilar(0.25, "distinct")), 1, 32, r"max_negatives=16 "),
        (config(33, selector=Everything()), 1, 32, r"max_negatives=33 "),
        (config(33, "refill"), 1, 32, r"max_negatives=33 "),
        (
            config(4, selector=LowestScored(1.0, 1.0)),
            4,
            32,
            r"filter\.selector=LowestScored needs scores.* \+reward_model@filter.reward_model=",
        ),
        (
            config(4, selector=NearestBelowMean(2.0)),
            4,
            32,
            r"filter\.selector=NearestBelowMean needs scores.* \+reward_model@filter.reward_model=",
        ),
        (
            config(4, selector=LeastLikely(0.5, "distinct")),
            4,
            32,
            r"selector=LeastLikely .*log-probabilities.* generator=hf",
        ),
        (
            config(4, selector=LowestRanked(0.5, "distinct", ["similarity", "log_prob"])),
            4,
            32,
            r"selector=LowestRanked .*log-probabilities",
        ),
        (config(16, selector=LeastConsistent(0.25, "samples")), 4, 32, r"max_negatives=16 .* 8 of "),
        (config(16, selector=LogDeterminant(0.25, 0.1)), 4, 32, r"max_negatives=16 .* 8 of "),
    ],
)
def test_filter_check_impossible_raises(settings: Filter, negatives: int, samples: int, line: str) -> None:
    with pytest.raises(UserError, match=line):
        settings.check(negatives, samples, verified=False, log_probs=False)


def test_filter_check_possible_passes() -> None:
    config(16).check(16, 32, verified=False, log_probs=False)
    config(8, selector=LeastSimilar(0.25, "distinct")).check(1, 32, verified=False, log_probs=False)
    config(16, "refill", LeastSimilar(0.25, "distinct")).check(
        16, 32, verified=False, log_probs=False
    )  # refill may use rejected candidates
    config(32, selector=Everything()).check(32, 32, verified=False, log_probs=False)
    config(4, selector=LowestScored(1.0, 1.0)).check(4, 32, verified=True, log_probs=False)
    config(4, selector=LeastLikely(0.5, "distinct")).check(4, 32, verified=False, log_probs=True)
    config(4, selector=LowestRanked(0.5, "distinct", ["similarity", "consensus"])).check(4, 32, False, log_probs=False)


@pytest.mark.parametrize("make", [lambda: config(0), lambda: config(4, "ignore")])
def test_filter_invalid_settings_raise(make: Any) -> None:
    with pytest.raises(UserError, match=r"filter\."):
        make()
