"""Which candidate is chosen, against plain loops; and that no negative is, equals, or is as good as, the chosen one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import NAMES, SELECTORS

from selfcontrast.data.candidates import Candidate, candidates_table, read_chosen, read_negatives
from selfcontrast.errors import UserError
from selfcontrast.filters.chosen import BestOfN, Consensus, Target, TargetAndBest, check_chosen
from selfcontrast.filters.embed import CANDIDATES, TARGETS, _write, hashes_of
from selfcontrast.filters.filter import FILE, PROMPTS, SIMILARITIES, select_negatives
from selfcontrast.filters.score import Verified
from selfcontrast.filters.select import Choice, Filter, Sampled, choose
from selfcontrast.filters.selectors import Everything, LowestFirst
from tiny import example

WORDS = ["target", *(f"w{i}" for i in range(7))]
SCORES = dict(zip(WORDS, (1.0, 0.25, 0.5, 1.0, 0.75, 0.5, 0.0, 0.25), strict=True))  # with ties, also at the top
TEXTS = st.lists(st.sampled_from(["", " ", *WORDS, *(f"{w} " for w in WORDS)]), min_size=1, max_size=16)
CANDIDATES_CHOSEN = st.sampled_from([BestOfN(), Consensus(), TargetAndBest()])


def vector(text: str) -> Any:
    """Of length one; another for every word."""
    own = np.random.default_rng([*text.strip().encode(), 1]).standard_normal(6).astype(np.float32)
    return own / np.linalg.norm(own)


@st.composite
def prompts(draw: st.DrawFn) -> Sampled:
    texts = draw(TEXTS)
    ended = draw(st.lists(st.booleans() | st.just(True), min_size=len(texts), max_size=len(texts)))
    vectors = np.stack([vector(text) for text in texts])
    return Sampled(draw(NAMES), "target", vector("target"), texts, vectors, *unlikely(texts), ended)


def unlikely(texts: Sequence[str]) -> tuple[Any, Any]:
    """Log-probabilities, and lengths, of these texts."""
    return np.full(len(texts), -1.0), np.ones(len(texts), dtype=np.intp)


def own(selector: Any, most: int, on_shortage: str = "drop_everywhere") -> Filter:
    return Filter(selector, most, on_shortage, 3, None)


def decided(sampled: Sampled, chosen: Any, settings: Filter) -> Choice:
    def score(rows: list[int]) -> tuple[Any, float]:
        return np.array([SCORES[sampled.texts[row].strip()] for row in rows], dtype=np.float32), 1.0

    return choose(settings, sampled, score, chosen)


def eligible(sampled: Sampled) -> list[str]:
    """The texts that may be chosen."""
    assert sampled.ended is not None
    return sorted({text.strip() for text, ended in zip(sampled.texts, sampled.ended, strict=True) if ended} - {""})


def mean_similarity(sampled: Sampled, text: str) -> float:
    """Of a text to the other responses: a plain loop."""
    others = [other.strip() for other in sampled.texts]
    others.remove(text)
    return sum(float(vector(text) @ vector(other)) for other in others) / max(1, len(others))


@given(prompts(), CANDIDATES_CHOSEN, SELECTORS, st.integers(1, 4), st.sampled_from(["drop_everywhere", "refill"]))
def test_no_negative_equals_what_is_chosen_or_is_as_good(
    sampled: Sampled, chosen: Any, selector: Any, most: int, on_shortage: str
) -> None:
    choice = decided(sampled, chosen, own(selector, most, on_shortage))
    negatives = [sampled.texts[row].strip() for row in choice.negatives]
    if choice.chosen is None:
        assert not eligible(sampled)
        assert negatives == []
        return
    text = sampled.texts[choice.chosen.row].strip()
    assert len(set(negatives)) == len(negatives)
    assert not {text, "target", ""} & set(negatives)
    assert choice.chosen.is_target == (text == "target")
    if chosen.scored:
        assert choice.chosen.score == max(SCORES[other] for other in eligible(sampled))
        assert all(SCORES[negative] < choice.chosen.score for negative in negatives)


@given(prompts(), CANDIDATES_CHOSEN, SELECTORS, st.integers(1, 3), st.integers(1, 3))
def test_the_draw_beside_a_chosen_candidate_is_nested(
    sampled: Sampled, chosen: Any, selector: Any, small: int, more: int
) -> None:
    few, many = (decided(sampled, chosen, own(selector, most)) for most in (small, small + more))
    assert few.chosen == many.chosen  # whatever the number of negatives
    if len(many.negatives):
        assert few.negatives.tolist() == many.negatives[:small].tolist()


@given(prompts())
def test_consensus_is_the_highest_mean_similarity_to_the_other_responses(sampled: Sampled) -> None:
    choice = decided(sampled, Consensus(), own(Everything(), 1))
    if choice.chosen is not None:
        found = mean_similarity(sampled, sampled.texts[choice.chosen.row].strip())
        assert found >= max(mean_similarity(sampled, text) for text in eligible(sampled)) - 1e-5


@given(prompts(), CANDIDATES_CHOSEN, st.randoms())
def test_what_is_chosen_does_not_depend_on_the_order_of_sampling(sampled: Sampled, chosen: Any, shuffle: Any) -> None:
    order = shuffle.sample(range(len(sampled.texts)), len(sampled.texts))
    assert sampled.ended is not None
    texts, ended = [sampled.texts[i] for i in order], [sampled.ended[i] for i in order]
    other = replace(sampled, texts=texts, ended=ended, vectors=sampled.vectors[order])
    found = [decided(one, chosen, own(Everything(), 1)) for one in (sampled, other)]
    assert found[0].chosen is None or {
        one.texts[choice.chosen.row].strip()
        for one, choice in zip((sampled, other), found, strict=True)
        if choice.chosen is not None
    } == {sampled.texts[found[0].chosen.row].strip()}
    negatives = [[one.texts[i].strip() for i in c.negatives] for one, c in zip((sampled, other), found, strict=True)]
    assert negatives[0] == negatives[1]


@given(prompts(), SELECTORS, st.integers(1, 4))
def test_the_target_alone_is_what_no_choice_is(sampled: Sampled, selector: Any, most: int) -> None:
    one, other = (decided(sampled, chosen, own(selector, most)) for chosen in (None, Target()))
    assert one.negatives.tolist() == other.negatives.tolist()
    assert one.chosen is other.chosen is None


def test_a_repeated_response_agrees_with_itself() -> None:
    """By hand: of a a b with cos(a, b) = 0, a has (1 + 0) / 2 and b has 0."""
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    sampled = Sampled("p", "t", vectors[2], ["a", "a", "b"], vectors, *unlikely("aab"))
    choice = choose(own(Everything(), 1), sampled, None, Consensus())
    assert choice.chosen is not None
    assert (choice.chosen.row, choice.chosen.score) == (0, None)
    assert choice.negatives.tolist() == [2]


def test_of_equally_good_ones_each_is_chosen_for_some_prompt() -> None:
    texts = ["target", "w2", "w0"]  # the first two score 1
    vectors = np.stack([vector(text) for text in texts])
    found = [
        decided(
            Sampled(f"p{i}", "target", vectors[0], texts, vectors, *unlikely(texts)), BestOfN(), own(Everything(), 1)
        ).chosen
        for i in range(200)
    ]
    counts = np.bincount([best.row for best in found if best is not None], minlength=3)
    assert counts[2] == 0
    assert abs(counts[0] - 100) < 36  # five standard deviations


def test_lowest_first_is_worst_first() -> None:
    texts = ["w0", "w1", "w5", "target"]
    vectors = np.stack([vector(text) for text in texts])
    sampled = Sampled("p", "target", vectors[3], texts, vectors, *unlikely(texts))
    assert decided(sampled, BestOfN(), own(LowestFirst(), 2)).negatives.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("chosen", "samples", "verified", "line"),
    [
        (
            BestOfN(),
            8,
            True,
            r"max_negatives=8 is impossible with chosen=BestOfN: of .*\.samples=8 .* 7 are left",
        ),
        (Consensus(), 1, True, r"max_negatives=8 is impossible"),
        (BestOfN(), 9, False, r"chosen=BestOfN needs scores, .* no verifier: add \+reward_model@filter.reward_model="),
        (TargetAndBest(), 9, False, r"chosen=TargetAndBest needs scores"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_any_compute(
    chosen: Any, samples: int, verified: bool, line: str
) -> None:
    with pytest.raises(UserError, match=line):
        check_chosen(chosen, own(Everything(), 8), samples, verified)


def test_what_can_be_chosen() -> None:
    check_chosen(Target(), own(Everything(), 8), 8, verified=False)
    check_chosen(Consensus(), own(Everything(), 8), 9, verified=False)
    check_chosen(BestOfN(), own(Everything(), 8), 9, verified=True)


# --- the stage's files

SAMPLED = {
    "p": ["w0", "target", "w1", "w5", "w1"],  # the target's text is the best
    "q": ["w3", "w0", "w5"],
    "r": ["w2", "w6", "w5"],  # w2 is right, and cut
    "s": ["w3", "", "w3"],  # one distinct one
}
CUT = {("r", 0)}


class Table:
    def score(self, one: Any, text: str, turn: int = -1) -> float:
        return SCORES[text]


def stage(folder: Path, chosen: Any, most: int = 1, sampled: dict[str, Sequence[str]] = SAMPLED) -> dict[str, Any]:
    rows = [
        Candidate(name, i, text, [7] * (i + 1), "length" if (name, i) in CUT else "stop", -1.0)
        for name, texts in sampled.items()
        for i, text in enumerate(texts)
    ]
    pq.write_table(candidates_table(rows), folder / "candidates.parquet")
    for file, texts in ((CANDIDATES, [row.text for row in rows]), (TARGETS, ["target"] * len(sampled))):
        vectors = np.stack([vector(text) for text in texts]).astype(np.float16)
        _write(folder / file, vectors, hashes_of(texts), np.arange(len(texts)))
    examples = {name: example(name, "?", "target") for name in sampled}
    settings = own(LowestFirst(), most)
    return select_negatives(
        folder, settings, examples, folder / "candidates.parquet", folder, Verified(Table()), chosen
    )


def chosen_texts(folder: Path) -> dict[str, list[str]]:
    return {name: [one.text for one in found] for name, found in (read_chosen(folder) or {}).items()}


def test_the_best_candidates_are_on_file_with_their_tokens(tmp_path: Path) -> None:
    summary = stage(tmp_path, BestOfN())
    assert chosen_texts(tmp_path) == {"p": ["target"], "q": ["w3"], "r": ["w6"]}  # of r the right one was cut
    found = read_chosen(tmp_path)
    assert found is not None
    assert [(one.sample, list(one.token_ids), one.score) for one in found["p"]] == [(1, [7, 7], 1.0)]
    assert {name: [n.text for n in ranked] for name, ranked in read_negatives(tmp_path / FILE).items()} == {
        "p": ["w5"], "q": ["w5"], "r": ["w5"],
    }  # fmt: skip
    assert summary["chosen_is_target_share"] == pytest.approx(1 / 3)
    assert summary["score_chosen"] == pytest.approx((1 + 0.75 + 0.25) / 3)
    assert (summary["prompts_used"], summary["prompts_dropped_for_chosen"]) == (3, 0)
    assert summary["duplicate_share"] == pytest.approx(2 / 14)
    taken = pd.read_parquet(tmp_path / SIMILARITIES).query("taken")
    assert set(zip(taken["id"], taken["sample"], strict=True)) >= {("q", 0), ("r", 1), ("s", 0)}
    assert not (taken["kept"] | taken["drawn"]).any()


def test_target_and_best_are_both_on_file_where_they_differ(tmp_path: Path) -> None:
    stage(tmp_path, TargetAndBest())
    assert chosen_texts(tmp_path) == {"p": ["target"], "q": ["target", "w3"], "r": ["target", "w6"]}
    found = read_chosen(tmp_path)
    assert found is not None
    assert [(one.sample, list(one.token_ids)) for one in found["q"]] == [(-1, []), (0, [7])]


def test_a_prompt_of_which_nothing_can_be_chosen_is_counted_and_not_used(tmp_path: Path) -> None:
    summary = stage(tmp_path, Consensus(), sampled={"r": ["w2", ""], "q": ["w0", "w0", "w1"]})
    assert chosen_texts(tmp_path) == {"q": ["w0"]}
    assert (summary["prompts_dropped_for_chosen"], summary["prompts_dropped_for_kept"]) == (1, 0)
    assert pd.read_parquet(tmp_path / PROMPTS)["too_few"].tolist() == ["chosen", ""]


def test_with_the_target_nothing_more_is_on_file(tmp_path: Path) -> None:
    summary = stage(tmp_path, Target())
    assert read_chosen(tmp_path) is None
    assert [name for name in summary if "chosen" in name] == []
    assert "taken" not in pd.read_parquet(tmp_path / SIMILARITIES)
    assert list(pd.read_parquet(tmp_path / PROMPTS)) == [
        "id", "sampled", "empty", "copies", "distinct", "kept", "drawn", "refilled", "too_few", "target_characters",
        "target_score",
    ]  # fmt: skip
