"""Compare the chosen candidate with plain loops, and check that no negative equals it or scores as high."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import NAMES, SELECTORS
from sources import write_candidates, write_vectors

from selfcontrast.data.candidates import read_chosen, read_negatives
from selfcontrast.errors import UserError
from selfcontrast.filters.chosen import BestOfN, Consensus, Target, TargetAndBest, check_chosen
from selfcontrast.filters.draw import Selection, choose
from selfcontrast.filters.filter import FILE, PROMPTS, SIMILARITIES, select_negatives
from selfcontrast.filters.pool import SampledPrompt
from selfcontrast.filters.score import VerifierScorer
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import Everything, LowestFirst
from tiny import example

WORDS = ["target", *(f"w{i}" for i in range(7))]
SCORES = dict(
    zip(WORDS, (1.0, 0.25, 0.5, 1.0, 0.75, 0.5, 0.0, 0.25), strict=True)
)  # with ties, also of the highest score
TEXTS = st.lists(st.sampled_from(["", " ", *WORDS, *(f"{w} " for w in WORDS)]), min_size=1, max_size=16)
CANDIDATES_CHOSEN = st.sampled_from([BestOfN(), Consensus(), TargetAndBest()])


def vector(text: str) -> Any:
    """Return a unit vector that differs from that of every other word."""
    values = np.random.default_rng([*text.strip().encode(), 1]).standard_normal(6).astype(np.float32)
    return values / np.linalg.norm(values)


@st.composite
def prompts(draw: st.DrawFn) -> SampledPrompt:
    texts = draw(TEXTS)
    ended = draw(st.lists(st.booleans() | st.just(True), min_size=len(texts), max_size=len(texts)))
    vectors = np.stack([vector(text) for text in texts])
    return SampledPrompt(draw(NAMES), "target", vector("target"), texts, vectors, *log_probs_and_lengths(texts), ended)


def log_probs_and_lengths(texts: Sequence[str]) -> tuple[Any, Any]:
    return np.full(len(texts), -1.0), np.ones(len(texts), dtype=np.intp)


def config(selector: Any, max_negatives: int, on_shortage: str = "drop_everywhere") -> Filter:
    return Filter(selector, max_negatives, on_shortage, 3, None)


def select(sampled: SampledPrompt, chosen: Any, settings: Filter) -> Selection:
    def score(rows: list[int]) -> tuple[Any, float]:
        return np.array([SCORES[sampled.texts[row].strip()] for row in rows], dtype=np.float32), 1.0

    return choose(settings, sampled, score, chosen)


def eligible(sampled: SampledPrompt) -> list[str]:
    """Return the texts that may be chosen: those that are neither empty nor truncated."""
    assert sampled.ended is not None
    return sorted({text.strip() for text, ended in zip(sampled.texts, sampled.ended, strict=True) if ended} - {""})


def mean_similarity(sampled: SampledPrompt, text: str) -> float:
    """Return the mean cosine of a text to the other responses, by a plain loop."""
    others = [other.strip() for other in sampled.texts]
    others.remove(text)
    return sum(float(vector(text) @ vector(other)) for other in others) / max(1, len(others))


@given(prompts(), CANDIDATES_CHOSEN, SELECTORS, st.integers(1, 4), st.sampled_from(["drop_everywhere", "refill"]))
def test_negatives_differ_from_the_chosen_candidate_and_score_lower(
    sampled: SampledPrompt, chosen: Any, selector: Any, max_negatives: int, on_shortage: str
) -> None:
    choice = select(sampled, chosen, config(selector, max_negatives, on_shortage))
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
def test_negatives_for_a_chosen_candidate_are_nested_in_max_negatives(
    sampled: SampledPrompt, chosen: Any, selector: Any, small: int, more: int
) -> None:
    few, many = (select(sampled, chosen, config(selector, max_negatives)) for max_negatives in (small, small + more))
    assert few.chosen == many.chosen
    if len(many.negatives):
        assert few.negatives.tolist() == many.negatives[:small].tolist()


@given(prompts())
def test_consensus_chooses_the_highest_mean_similarity(sampled: SampledPrompt) -> None:
    choice = select(sampled, Consensus(), config(Everything(), 1))
    if choice.chosen is not None:
        similarity = mean_similarity(sampled, sampled.texts[choice.chosen.row].strip())
        assert similarity >= max(mean_similarity(sampled, text) for text in eligible(sampled)) - 1e-5


@given(prompts(), CANDIDATES_CHOSEN, st.randoms())
def test_chosen_does_not_depend_on_the_sampling_order(sampled: SampledPrompt, chosen: Any, shuffle: Any) -> None:
    order = shuffle.sample(range(len(sampled.texts)), len(sampled.texts))
    assert sampled.ended is not None
    texts, ended = [sampled.texts[i] for i in order], [sampled.ended[i] for i in order]
    other = replace(sampled, texts=texts, ended=ended, vectors=sampled.vectors[order])
    both = (sampled, other)
    choices = [select(prompt, chosen, config(Everything(), 1)) for prompt in both]
    assert choices[0].chosen is None or {
        prompt.texts[choice.chosen.row].strip()
        for prompt, choice in zip(both, choices, strict=True)
        if choice.chosen is not None
    } == {sampled.texts[choices[0].chosen.row].strip()}
    negatives = [[prompt.texts[i].strip() for i in c.negatives] for prompt, c in zip(both, choices, strict=True)]
    assert negatives[0] == negatives[1]


@given(prompts(), SELECTORS, st.integers(1, 4))
def test_chosen_target_gives_the_same_negatives_as_no_setting(
    sampled: SampledPrompt, selector: Any, max_negatives: int
) -> None:
    default, target = (select(sampled, chosen, config(selector, max_negatives)) for chosen in (None, Target()))
    assert default.negatives.tolist() == target.negatives.tolist()
    assert default.chosen is target.chosen is None


def test_consensus_averages_over_repeated_candidates() -> None:
    """Among a, a, b with cos(a, b) = 0, the mean cosine to the others is (1 + 0) / 2 for a, and 0 for b."""
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    sampled = SampledPrompt("p", "t", vectors[2], ["a", "a", "b"], vectors, *log_probs_and_lengths("aab"))
    choice = choose(config(Everything(), 1), sampled, None, Consensus())
    assert choice.chosen is not None
    assert (choice.chosen.row, choice.chosen.score) == (0, None)
    assert choice.negatives.tolist() == [2]


def test_best_of_n_breaks_ties_uniformly_over_prompts() -> None:
    texts = ["target", "w2", "w0"]  # the first two score 1
    vectors = np.stack([vector(text) for text in texts])
    prompt = SampledPrompt("p", "target", vectors[0], texts, vectors, *log_probs_and_lengths(texts))
    settings = config(Everything(), 1)
    best = [select(replace(prompt, id=f"p{i}"), BestOfN(), settings).chosen for i in range(200)]
    counts = np.bincount([candidate.row for candidate in best if candidate is not None], minlength=3)
    assert counts[2] == 0
    assert abs(counts[0] - 100) < 36  # five standard deviations


def test_lowest_first_ranks_the_lowest_score_first() -> None:
    texts = ["w0", "w1", "w5", "target"]
    vectors = np.stack([vector(text) for text in texts])
    sampled = SampledPrompt("p", "target", vectors[3], texts, vectors, *log_probs_and_lengths(texts))
    assert select(sampled, BestOfN(), config(LowestFirst(), 2)).negatives.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("chosen", "samples", "verified", "line"),
    [
        (
            BestOfN(),
            8,
            True,
            r"max_negatives=8 .*chosen=BestOfN.*samples=8 .*\b7\b",
        ),
        (Consensus(), 1, True, r"max_negatives=8 .*chosen=Consensus"),
        (BestOfN(), 9, False, r"chosen=BestOfN needs scores.* \+reward_model@filter.reward_model="),
        (TargetAndBest(), 9, False, r"chosen=TargetAndBest needs scores"),
    ],
)
def test_check_chosen_with_too_few_samples_or_no_scores_raises(
    chosen: Any, samples: int, verified: bool, line: str
) -> None:
    with pytest.raises(UserError, match=line):
        check_chosen(chosen, config(Everything(), 8), samples, verified)


def test_check_chosen_with_enough_samples_and_scores_passes() -> None:
    check_chosen(Target(), config(Everything(), 8), 8, verified=False)
    check_chosen(Consensus(), config(Everything(), 8), 9, verified=False)
    check_chosen(BestOfN(), config(Everything(), 8), 9, verified=True)


# --- the stage's files

SAMPLED = {
    "p": ["w0", "target", "w1", "w5", "w1"],  # "target" has the highest score
    "q": ["w3", "w0", "w5"],
    "r": ["w2", "w6", "w5"],  # w2 has the highest score, but is truncated
    "s": ["w3", "", "w3"],  # one distinct candidate
}
TRUNCATED = {("r", 0)}


class TableVerifier:
    def score(self, item: Any, text: str, turn: int = -1) -> float:
        return SCORES[text]


def stage(
    folder: Path, chosen: Any, max_negatives: int = 1, sampled: dict[str, Sequence[str]] = SAMPLED
) -> dict[str, Any]:
    candidates = write_candidates(folder, sampled, TRUNCATED)
    write_vectors(folder, sampled, vector, vector("target"))
    examples = {name: example(name, "?", "target") for name in sampled}
    settings = config(LowestFirst(), max_negatives)
    return select_negatives(folder, settings, examples, candidates, folder, VerifierScorer(TableVerifier()), chosen)


def chosen_texts(folder: Path) -> dict[str, list[str]]:
    chosen = read_chosen(folder) or {}
    return {name: [response.text for response in responses] for name, responses in chosen.items()}


def test_best_of_n_writes_chosen_candidates_with_their_tokens(tmp_path: Path) -> None:
    summary = stage(tmp_path, BestOfN())
    assert chosen_texts(tmp_path) == {"p": ["target"], "q": ["w3"], "r": ["w6"]}  # w2 of r is truncated
    chosen = read_chosen(tmp_path)
    assert chosen is not None
    assert [(c.sample, list(c.token_ids), c.score) for c in chosen["p"]] == [(1, [7, 7], 1.0)]
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


def test_target_and_best_writes_two_responses_if_they_differ(tmp_path: Path) -> None:
    stage(tmp_path, TargetAndBest())
    assert chosen_texts(tmp_path) == {"p": ["target"], "q": ["target", "w3"], "r": ["target", "w6"]}
    chosen = read_chosen(tmp_path)
    assert chosen is not None
    assert [(c.sample, list(c.token_ids)) for c in chosen["q"]] == [(-1, []), (0, [7])]


def test_prompt_without_a_candidate_to_choose_is_dropped_and_counted(tmp_path: Path) -> None:
    summary = stage(tmp_path, Consensus(), sampled={"r": ["w2", ""], "q": ["w0", "w0", "w1"]})
    assert chosen_texts(tmp_path) == {"q": ["w0"]}
    assert (summary["prompts_dropped_for_chosen"], summary["prompts_dropped_for_kept"]) == (1, 0)
    assert pd.read_parquet(tmp_path / PROMPTS)["too_few"].tolist() == ["chosen", ""]


def test_target_writes_no_columns_or_files_of_chosen_candidates(tmp_path: Path) -> None:
    summary = stage(tmp_path, Target())
    assert read_chosen(tmp_path) is None
    assert [name for name in summary if "chosen" in name] == []
    assert "taken" not in pd.read_parquet(tmp_path / SIMILARITIES)
    assert list(pd.read_parquet(tmp_path / PROMPTS)) == [
        "id", "sampled", "empty", "copies", "distinct", "kept", "drawn", "refilled", "too_few", "target_characters",
        "target_score",
    ]  # fmt: skip
