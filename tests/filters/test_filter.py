"""Compare the filter stage with values computed by hand, and check its properties on random prompts."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pools import SELECTORS
from sources import log_prob_per_token, write_sources

from selfcontrast.data import candidates as files
from selfcontrast.data.candidates import read_negatives
from selfcontrast.data.example import Example
from selfcontrast.errors import UserError
from selfcontrast.filters.filter import (
    DIAGNOSTICS,
    FILE,
    PROMPTS,
    SIMILARITIES,
    select_negatives,
    target_scores,
)
from selfcontrast.filters.score import VerifierScorer
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import Everything, LeastLikely, LeastSimilar, LowestScored, MostSimilarBelow
from studies.gradient_error.experiment import select_samples
from tiny import example

EXAMPLES = {name: example(name, "?", "target") for name in ("p", "q", "r")}
COSINES = {"good": 0.9, "fair": 0.5, "bad": 0.1, "worse": -0.2}  # cosines to the target
SCORES = {"good": 1.0, "fair": 0.5, "bad": 0.0, "worse": 0.0, "target": 0.875}
SAMPLED = {
    "p": ["good", "bad", "worse", "fair", "bad"],
    "q": ["target", "", " target ", "good", "good"],  # one distinct candidate
    "r": ["fair", "good", "", "worse", "bad"],
}


class TableVerifier:
    def score(self, item: Example, text: str, turn: int = -1) -> float:
        return SCORES[text]


def select(
    folder: Path, selector: Any, max_negatives: int = 2, on_shortage: str = "drop_everywhere", graded: bool = True
) -> Any:
    sources = write_sources(folder / "in", SAMPLED, lambda text: COSINES.get(text.strip(), 0.0))
    config = Filter(selector, max_negatives, on_shortage, 0, None)
    return select_negatives(folder, config, EXAMPLES, *sources, VerifierScorer(TableVerifier()) if graded else None)


def test_select_negatives_draws_from_the_least_similar_half(tmp_path: Path) -> None:
    select(tmp_path, LeastSimilar(0.5, "distinct"))
    negatives = read_negatives(tmp_path / FILE)
    assert set(negatives) == {"p", "r"}
    for name, ranked in negatives.items():
        assert [n.rank for n in ranked] == [0, 1]
        assert {n.text for n in ranked} == {"bad", "worse"}
        for negative in ranked:
            assert negative.sample == SAMPLED[name].index(negative.text)
            assert list(negative.token_ids) == [7] * (negative.sample + 1)
            assert negative.similarity == pytest.approx(COSINES[negative.text], abs=1e-3)
    assert set(read_negatives(tmp_path / FILE, ["r"])) == {"r"}


@pytest.mark.parametrize("graded", [True, False])
def test_negatives_store_log_probability_and_score(tmp_path: Path, graded: bool) -> None:
    select(tmp_path, LeastSimilar(0.5, "distinct"), graded=graded)
    for ranked in read_negatives(tmp_path / FILE).values():
        for negative in ranked:
            assert negative.log_prob == log_prob_per_token(negative.text) * (negative.sample + 1)
            assert negative.score == SCORES[negative.text] if graded else math.isnan(negative.score)
    scores = target_scores(tmp_path)
    assert scores.keys() == {"p", "q", "r"}
    assert all(score == 0.875 if graded else math.isnan(score) for score in scores.values())


def test_summary_equals_values_computed_by_hand(tmp_path: Path) -> None:
    """p and r have four distinct candidates, and q has one: good. The filter draws bad and worse of p and of r."""
    summary = select(tmp_path, LeastSimilar(0.5, "distinct"))
    expected = {
        "prompts": 3,
        "prompts_used": 2,
        "prompts_dropped": 1,
        "prompts_dropped_for_distinct": 1,
        "prompts_dropped_for_kept": 0,
        "prompts_refilled": 0,
        "candidates": 15,
        "distinct_per_prompt": 9 / 3,
        "kept_per_prompt": 4 / 3,
        "duplicate_share": 2 / 15,  # bad of p and good of q are sampled twice
        "empty_share": 2 / 15,
        "copies_of_target_share": 2 / 15,
        "similarity_candidates": pytest.approx((2 * (0.9 + 0.5 + 0.1 - 0.2) + 0.9) / 9, abs=1e-3),
        "similarity_negatives": pytest.approx((0.1 - 0.2) / 2, abs=1e-3),
        "tokens_candidates": pytest.approx((1 + 2 + 3 + 4 + 4 + 1 + 2 + 4 + 5) / 9),
        "tokens_negatives": pytest.approx((2 + 3 + 4 + 5) / 4),
        "tokens_left": pytest.approx((1 + 4 + 4 + 1 + 2) / 5),
        "characters_targets": [6, 6, 6],
        "characters_negatives": pytest.approx([3, 4, 5]),  # quantiles of 3, 3, 5, 5
        "score_candidates": pytest.approx((2 * 1.5 + 1) / 9),
        "score_negatives": 0.0,
        "false_negatives_before": pytest.approx(3 / 9),
        "false_negatives_after": 0.0,
    }
    assert {name: summary[name] for name in expected} == expected
    json.dumps(summary)


def test_similarities_and_prompts_files_equal_values_computed_by_hand(tmp_path: Path) -> None:
    select(tmp_path, LeastSimilar(0.5, "distinct"))
    similarities = pd.read_parquet(tmp_path / SIMILARITIES)
    assert similarities["id"].tolist() == ["p"] * 4 + ["q"] + ["r"] * 4
    assert similarities.groupby("id")["drawn"].sum().to_dict() == {"p": 2, "q": 0, "r": 2}
    assert similarities.loc[similarities["id"] == "p", "sample"].tolist() == [
        2,
        1,
        3,
        0,
    ]  # the texts are worse, bad, fair, good
    assert similarities.loc[similarities["id"] == "r", "score"].tolist() == [0, 0, 0.5, 1]
    prompts = pd.read_parquet(tmp_path / PROMPTS).set_index("id")
    assert prompts["too_few"].to_dict() == {"p": "", "q": "distinct", "r": ""}
    assert prompts["kept"].to_dict() == {"p": 2, "q": 0, "r": 2}
    diagnostics = json.loads((tmp_path / DIAGNOSTICS).read_text())
    assert (sum(diagnostics["candidates"]), sum(diagnostics["negatives"])) == (9, 4)
    assert diagnostics["cuts"]["high"] == pytest.approx([0.1] * 3, abs=1e-3)


def test_similarities_file_has_consensus_and_log_probability(tmp_path: Path) -> None:
    """The cosines of candidates to the target (1, 0) give their angles, and these give the cosines between them."""
    select(tmp_path, LeastSimilar(0.5, "distinct"))
    similarities = pd.read_parquet(tmp_path / SIMILARITIES)
    rows = similarities[similarities["id"] == "p"]
    angles = [float(np.arccos(COSINES[text])) for text in SAMPLED["p"]]
    texts = [SAMPLED["p"][sample] for sample in rows["sample"]]
    for text, sample, consensus in zip(texts, rows["sample"], rows["consensus"], strict=True):
        others = [np.cos(angles[sample] - angle) for i, angle in enumerate(angles) if i != sample]
        assert consensus == pytest.approx(np.mean(others), abs=2e-3), text
    assert (rows["log_prob"] / rows["tokens"]).tolist() == [log_prob_per_token(text) for text in texts]


def test_signals_are_measured_only_with_a_scorer(tmp_path: Path) -> None:
    """p and r have one right candidate, "good", which is the most similar, and three wrong ones. q has only "good"."""
    summary = select(tmp_path, LeastSimilar(0.5, "distinct"))
    table = json.loads((tmp_path / DIAGNOSTICS).read_text())["signals"]
    assert [row["signal"] for row in table] == ["similarity", "consensus", "log_prob", "rank_sum"]
    similarity = table[0]
    # The wrong candidates have the ranks 1/8, 3/8 and 5/8, each twice. The right ones have 7/8 twice, and 1/2.
    # So the right candidate has the higher rank in 2 * 6 + 4 of 18 pairs.
    assert similarity["auc"] == summary["auc_similarity"] == pytest.approx(16 / 18)
    assert similarity["false_negatives"] == [
        0,
        0,
        0,
        None,
    ]  # 3, 2, 1 and 0 of four candidates are kept
    unscored = select(tmp_path, LeastSimilar(0.5, "distinct"), graded=False)
    assert json.loads((tmp_path / DIAGNOSTICS).read_text())["signals"] == []
    assert not [name for name in unscored if name.startswith("auc_")]


def test_summary_without_a_scorer_has_no_scores(tmp_path: Path) -> None:
    summary = select(tmp_path, LeastSimilar(0.5, "distinct"), graded=False)
    scores = [name for name in summary if "score" in name or "false" in name]
    assert len(scores) == 4
    assert {summary[name] for name in scores} == {None}


def test_verifier_oracle_has_no_false_negatives(tmp_path: Path) -> None:
    summary = select(tmp_path, LowestScored(1.0, 1.0), max_negatives=3)
    assert summary["false_negatives_after"] == 0
    assert {n.text for n in read_negatives(tmp_path / FILE)["p"]} == {"fair", "bad", "worse"}


def test_ranked_selector_keeps_its_order(tmp_path: Path) -> None:
    select(tmp_path, MostSimilarBelow(0.8), max_negatives=3)
    for ranked in read_negatives(tmp_path / FILE).values():
        assert [n.text for n in ranked] == ["fair", "bad", "worse"]


def test_on_shortage_drops_refills_or_raises(tmp_path: Path) -> None:
    dropped = select(tmp_path, MostSimilarBelow(0.3), max_negatives=2)
    assert (dropped["prompts_used"], dropped["prompts_dropped_for_kept"]) == (2, 0)
    with pytest.raises(UserError, match=r"filter\.max_negatives=3 .*2 with 4 distinct, 2 kept"):
        select(tmp_path, MostSimilarBelow(0.3), max_negatives=3)
    refilled = select(tmp_path, MostSimilarBelow(0.3), max_negatives=3, on_shortage="refill")
    assert (refilled["prompts_used"], refilled["prompts_refilled"]) == (2, 2)
    assert [n.text for n in read_negatives(tmp_path / FILE)["p"]] == ["bad", "worse", "fair"]
    with pytest.raises(UserError, match=r"prompt p .* 2 of filter\.max_negatives=3"):
        select(tmp_path, MostSimilarBelow(0.3), max_negatives=3, on_shortage="error")


def test_no_usable_prompt_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_negatives=5 .*\(2 with 4 distinct, 2 kept, 1 with 1 distinct, 0 kept\)"):
        select(tmp_path, LeastSimilar(0.5, "distinct"), max_negatives=5)


# --- properties of every selector

WORDS = [f"w{i}" for i in range(9)]
PROMPT = st.lists(st.sampled_from(["", " ", "target", *WORDS, *(f"{w} " for w in WORDS)]), min_size=1, max_size=14)


def cosine(text: str) -> float:
    """Return a cosine that differs between words."""
    return (WORDS.index(text.strip()) - 4) / 5 if text.strip() in WORDS else 0.3


def negative_texts(
    folder: Path, sampled: dict[str, Sequence[str]], selector: Any, max_negatives: int
) -> dict[str, list[str]]:
    """Return per prompt the stripped texts of its negatives in rank order; {} if no prompt has enough candidates."""
    sources = write_sources(folder, sampled, cosine)
    examples = {name: example(name, "?", "target") for name in sampled}
    config = Filter(selector, max_negatives, "drop_everywhere", 7, None)
    try:
        select_negatives(folder, config, examples, *sources, VerifierScorer(WordVerifier()))
    except UserError:
        return {}
    negatives = read_negatives(folder / FILE)
    return {name: [negative.text.strip() for negative in ranked] for name, ranked in negatives.items()}


class WordVerifier:
    def score(self, item: Example, text: str, turn: int = -1) -> float:
        return 1.0 if text == "target" else (int(text.strip()[1:]) * 5 % 9) / 9


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(PROMPT, min_size=1, max_size=4),
    selector=SELECTORS,
    max_negatives=st.integers(1, 4),
    shuffle=st.randoms(),
)
def test_negatives_of_a_prompt_are_distinct_and_independent_of_other_prompts(
    tmp_path: Path, prompts: list[list[str]], selector: Any, max_negatives: int, shuffle: Any
) -> None:
    """A prompt's negatives depend neither on other prompts nor on the order of its candidates."""
    sampled: dict[str, Sequence[str]] = {f"p{i}": texts for i, texts in enumerate(prompts)}
    together = negative_texts(tmp_path / "all", sampled, selector, max_negatives)
    for texts in together.values():
        assert len(set(texts)) == len(texts) == max_negatives
        assert set(texts) <= set(WORDS)
    for name, texts in sampled.items():
        shuffled = shuffle.sample(list(texts), len(texts))
        assert negative_texts(tmp_path / "one", {name: shuffled}, selector, max_negatives).get(name) == together.get(
            name
        )


@pytest.mark.parametrize(
    "cosine_of", [lambda text: COSINES.get(text.strip(), 0.0), lambda text: 0.5], ids=["distinct", "ties"]
)
@pytest.mark.parametrize(
    "selector",
    [LeastSimilar(0.75, "distinct"), MostSimilarBelow(1.0), LeastLikely(0.75, "distinct")],
    ids=["least similar", "most similar", "least likely"],
)
def test_gradient_study_selects_the_negatives_of_the_filter_stage(
    tmp_path: Path, cosine_of: Any, selector: Any
) -> None:
    sources, config = (
        write_sources(tmp_path / "in", SAMPLED, cosine_of),
        Filter(selector, 2, "drop_everywhere", 0, None),
    )
    select_negatives(tmp_path, config, EXAMPLES, *sources, None)
    negatives = read_negatives(tmp_path / FILE)
    similarities = pd.read_parquet(tmp_path / SIMILARITIES)
    kept, drawn = select_samples(config, EXAMPLES, *sources, None)
    for name, mask, rows in zip(SAMPLED, kept, drawn, strict=True):
        assert list(rows) == [negative.sample for negative in negatives.get(name, [])]
        rows_kept = similarities[(similarities["id"] == name) & similarities["kept"]]
        assert set(np.flatnonzero(mask)) == set(rows_kept["sample"])


def test_block_size_of_reading_does_not_change_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = {f"p{i}": [WORDS[(i * k) % 9] for k in range(1, 9)] for i in range(1, 9)}
    expected = negative_texts(tmp_path / "whole", sampled, Everything(), 3)
    whole_prompts = files.whole_prompts
    monkeypatch.setattr(
        "selfcontrast.filters.filter.whole_prompts", lambda file, columns: whole_prompts(file, columns, rows=3)
    )
    assert negative_texts(tmp_path / "pieces", sampled, Everything(), 3) == expected != {}
