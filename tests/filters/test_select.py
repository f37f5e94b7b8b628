"""The draw of negatives: nested, seeded, the same prompts for every K, from the least similar."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.data.candidates import Candidate
from selfcontrast.errors import UserError
from selfcontrast.filters.select import Everything, Filter, LeastSimilar, distinct, draw

SIMILARITIES = st.lists(st.floats(-1, 1, width=32), max_size=40).map(lambda x: np.array(x, dtype=np.float32))
NAMES = st.text(min_size=1, max_size=8)
SEEDS = st.integers(0, 10**6)
SELECTORS = st.one_of(st.just(Everything()), st.floats(0.05, 1).map(LeastSimilar))


def own(most: int, on_shortage: str = "drop_everywhere", selector: Any = None, seed: int = 42) -> Filter:
    return Filter(selector or LeastSimilar(0.75), most, on_shortage, seed)


def candidate(text: str, sample: int = 0) -> Candidate:
    return Candidate("a", sample, text, [1], "stop", 0.0)


@given(similarity=SIMILARITIES, name=NAMES, seed=SEEDS, selector=SELECTORS, most=st.integers(1, 20))
def test_a_prompt_gives_the_whole_pool_or_nothing(
    similarity: Any, name: str, seed: int, selector: Any, most: int
) -> None:
    """Whether a prompt is used does not depend on K, and its K negatives are the first K of one list."""
    drawn = draw(own(most, "drop_everywhere", selector, seed), name, similarity).tolist()
    kept = selector.keep(similarity).tolist()
    assert len(drawn) == (most if len(kept) >= most else 0)
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(kept)


@given(similarity=SIMILARITIES, name=NAMES, seed=SEEDS, small=st.integers(1, 10), more=st.integers(1, 10))
def test_a_smaller_pool_is_the_beginning_of_a_larger(
    similarity: Any, name: str, seed: int, small: int, more: int
) -> None:
    few = draw(own(small, seed=seed), name, similarity)
    many = draw(own(small + more, seed=seed), name, similarity)
    if len(many):
        assert many[:small].tolist() == few.tolist()


@given(similarity=SIMILARITIES, share=st.floats(0.01, 1))
def test_the_kept_are_the_least_similar_share(similarity: Any, share: float) -> None:
    selector = LeastSimilar(share)
    kept = selector.keep(similarity)
    assert len(kept) == selector.most(len(similarity)) == int(np.floor(share * len(similarity) + 1e-9))
    left = np.delete(similarity, kept)
    assert not len(kept) or not len(left) or similarity[kept].max() <= left.min()


@pytest.mark.parametrize(("share", "samples", "most"), [(0.75, 32, 24), (0.25, 32, 8), (0.1, 30, 3), (1.0, 7, 7)])
def test_a_share_is_rounded_down_but_not_by_floating_point(share: float, samples: int, most: int) -> None:
    assert LeastSimilar(share).most(samples) == most


@given(similarity=SIMILARITIES, name=NAMES, seed=SEEDS, most=st.integers(1, 20), share=st.floats(0.05, 1))
def test_refill_adds_the_least_similar_of_the_rest_at_the_last_ranks(
    similarity: Any, name: str, seed: int, most: int, share: float
) -> None:
    selector = LeastSimilar(share)
    drawn = draw(own(most, "refill", selector, seed), name, similarity).tolist()
    kept = selector.keep(similarity).tolist()
    if len(similarity) < most:
        assert drawn == []
        return
    assert len(set(drawn)) == len(drawn) == most
    first, last = drawn[: len(kept)], drawn[len(kept) :]
    assert set(first) <= set(kept)
    assert not set(last) & set(kept)
    assert all(similarity[i] <= similarity[j] for i in last for j in range(len(similarity)) if j not in drawn)


def test_error_names_the_prompt() -> None:
    assert len(draw(own(3, "error"), "p7", np.arange(4.0))) == 3
    with pytest.raises(UserError, match=r"prompt p7 leaves 3 negatives of filter\.max_negatives=4"):
        draw(own(4, "error"), "p7", np.arange(4.0))


def test_the_draw_is_random_seeded_and_by_prompt() -> None:
    similarity = np.arange(32, dtype=np.float32)
    first = draw(own(16), "p1", similarity).tolist()
    assert first == draw(own(16), "p1", similarity).tolist()
    assert first != sorted(first)  # not in order of similarity
    assert first != draw(own(16), "p2", similarity).tolist()
    assert first != draw(own(16, seed=43), "p1", similarity).tolist()
    # Over prompts, every kept candidate is as likely as another to be rank 0.
    ranks = np.array([draw(own(1), f"p{i}", similarity)[0] for i in range(2400)])
    counts = np.bincount(ranks, minlength=24)
    assert len(counts) == 24
    assert (np.abs(counts - 100) < 50).all()  # five standard deviations


@given(st.lists(st.sampled_from(["", " ", "a", "a ", "b", "c", "target", " target\n"]), max_size=12))
def test_distinct_drops_empty_ones_copies_and_repetitions(texts: list[str]) -> None:
    found = distinct("target ", [candidate(text, i) for i, text in enumerate(texts)])
    stripped = [text.strip() for text in texts]
    expected = [text for text in dict.fromkeys(stripped) if text not in ("", "target")]
    assert [c.text.strip() for c in found] == expected
    assert [c.sample for c in found] == [stripped.index(text) for text in expected]


@pytest.mark.parametrize(
    ("settings", "negatives", "samples", "line"),
    [
        (own(4), 5, 32, r"negatives=5 is more than filter\.max_negatives=4"),
        (own(16, selector=LeastSimilar(0.25)), 16, 32, r"max_negatives=16 is impossible.*keeps 8 at most"),
        (own(16, selector=LeastSimilar(0.25)), 1, 32, r"max_negatives=16 is impossible"),
        (own(33, selector=Everything()), 1, 32, r"max_negatives=33 is impossible"),
        (own(33, "refill"), 1, 32, r"max_negatives=33 is impossible"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_any_compute(
    settings: Filter, negatives: int, samples: int, line: str
) -> None:
    with pytest.raises(UserError, match=line):
        settings.check(negatives, samples)


def test_numbers_that_can_be() -> None:
    own(16).check(16, 32)
    own(8, selector=LeastSimilar(0.25)).check(1, 32)
    own(16, "refill", LeastSimilar(0.25)).check(16, 32)  # what refill is for
    own(32, selector=Everything()).check(32, 32)


@pytest.mark.parametrize(
    "make",
    [lambda: own(0), lambda: own(4, "ignore"), lambda: LeastSimilar(0.0), lambda: LeastSimilar(1.1)],
)
def test_settings_that_cannot_be(make: Any) -> None:
    with pytest.raises(UserError, match=r"filter\."):
        make()
