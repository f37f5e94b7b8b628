"""Test the filter on prompts without target. Their similarities are unknown, so no result depends on them."""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given
from pools import SELECTORS, pools
from sources import write_candidates

from selfcontrast.data.candidates import read_chosen, read_negatives
from selfcontrast.data.graders import Contains
from selfcontrast.engines.local import Local
from selfcontrast.filters.chosen import BestOfN, Consensus
from selfcontrast.filters.diagnostics import lines
from selfcontrast.filters.embed import embed
from selfcontrast.filters.filter import FILE, PROMPTS, SIMILARITIES, select_negatives
from selfcontrast.filters.pool import Pool, needs_target
from selfcontrast.filters.score import RewardScorer, VerifierScorer, score
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import Everything, LeastConsistentFirst
from tiny import example

TEXTS = {
    "bare": ["one", "one", "one of two", "far away", ""],
    "answered": ["one", "two", "two", "the target"],
    "last": ["nowhere", "one", "one", "on"],
}
EXAMPLES = {
    "bare": replace(example("bare", "A?", "", answer="one"), has_target=False),
    "answered": example("answered", "B?", "the target"),
    "last": replace(example("last", "C?", "", answer="one"), has_target=False),
}


class LetterEncoder:
    """An encoder that counts letters; the empty text has its own dimension."""

    @contextmanager
    def open(self, device: str) -> Any:
        def encode(texts: Sequence[str]) -> Any:
            counts = [[text.count(letter) for letter in "onetwfarygih"] + [not text] for text in texts]
            vectors = np.array(counts, dtype=np.float32) + 1e-3
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        yield encode


class LengthRewardModel:
    @contextmanager
    def open(self, device: str) -> Any:
        yield lambda responses: np.array([len(text) for _, text in responses], dtype=np.float32)


def filter_with(selector: Any, on_shortage: str = "drop_everywhere") -> Filter:
    return Filter(selector, 1, on_shortage, 3, None)


def stage(
    folder: Path, names: Sequence[str], settings: Filter, chosen: Any, rewarded: bool = False, scorer: Any = None
) -> dict[str, Any]:
    sampled = {name: TEXTS[name] for name in names}
    candidates = write_candidates(folder, sampled)
    letters: Any = LetterEncoder()
    embed(folder, letters, Local(1, 3), [(EXAMPLES[name].target, TEXTS[name]) for name in names], "cpu")
    if rewarded:
        lengths: Any = LengthRewardModel()
        (folder / "rewards").mkdir()
        score(folder / "rewards", lengths, Local(1, 3), [(EXAMPLES[name], TEXTS[name]) for name in names], "cpu")
        scorer = RewardScorer(folder / "rewards")
    return select_negatives(folder, settings, EXAMPLES, candidates, folder, scorer, chosen)


@given(selector=SELECTORS, candidates=pools())
def test_selector_that_needs_no_target_ignores_similarities(selector: Any, candidates: Pool) -> None:
    if needs_target(selector):
        return
    unknown = replace(candidates, similarity=np.full_like(candidates.similarity, np.nan), excluded=np.array([np.nan]))
    assert selector.select(unknown).tolist() == selector.select(candidates).tolist()


def test_consensus_chooses_positives_and_negatives_without_targets(tmp_path: Path) -> None:
    summary = stage(tmp_path, ["bare", "answered", "last"], filter_with(LeastConsistentFirst()), Consensus())
    negatives = read_negatives(tmp_path / FILE)
    assert {name: [item.text for item in items] for name, items in negatives.items()} == {
        "bare": ["far away"], "answered": ["one"], "last": ["nowhere"],
    }  # fmt: skip
    positives = read_chosen(tmp_path) or {}
    assert {name: [item.text for item in items] for name, items in positives.items()} == {
        "bare": ["one"], "answered": ["two"], "last": ["one"],
    }  # fmt: skip
    assert [math.isnan(negatives[name][0].similarity) for name in ("bare", "answered", "last")] == [True, False, True]
    known = pd.read_parquet(tmp_path / SIMILARITIES).groupby("id")["similarity"].count().to_dict()
    assert known == {"bare": 0, "answered": 2, "last": 0}
    assert math.isfinite(summary["similarity_candidates"])
    assert len(summary["characters_targets"]) == 3


def test_summary_without_any_target_has_no_similarity(tmp_path: Path) -> None:
    summary = stage(tmp_path, ["bare", "last"], filter_with(LeastConsistentFirst()), Consensus())
    assert (summary["similarity_candidates"], summary["length_similarity_correlation"]) == (None, None)
    assert summary["characters_targets"] == []
    assert not any("similarity" in line or "nan" in line for line in lines(summary))


def test_false_negatives_by_reward_exclude_prompts_without_target(tmp_path: Path) -> None:
    """The reward is the length. In the prompt "answered", only the copy of the target is as long as the target."""
    summary = stage(tmp_path, ["bare", "answered", "last"], filter_with(Everything()), BestOfN(), rewarded=True)
    assert (summary["false_negatives_before"], summary["false_negatives_after"]) == (0.0, 0.0)
    positives = read_chosen(tmp_path) or {}
    assert [positives[name][0].text for name in ("bare", "answered", "last")] == ["one of two", "the target", "nowhere"]


def test_rewards_without_any_target_give_no_false_negatives(tmp_path: Path) -> None:
    summary = stage(tmp_path, ["bare", "last"], filter_with(Everything()), BestOfN(), rewarded=True)
    assert (summary["false_negatives_before"], summary["score_chosen"]) == (None, (10 + 7) / 2)
    assert not [name for name in summary if name.startswith("auc")]
    assert not any("false" in line or "nan" in line for line in lines(summary))


def test_verifier_scores_give_false_negatives_and_signals_without_targets(tmp_path: Path) -> None:
    """Texts with "one" are right: two of the three distinct texts of "bare", and one of the three of "last"."""
    scorer = VerifierScorer(Contains(ignore_case=False))
    summary = stage(tmp_path, ["bare", "last"], filter_with(Everything()), Consensus(), scorer=scorer)
    assert summary["false_negatives_before"] == 3 / 6
    signals = {name for name in summary if name.startswith("auc_")}
    assert signals == {"auc_consensus", "auc_log_prob", "auc_rank_sum"}  # without targets, there is no similarity
    assert pd.read_parquet(tmp_path / PROMPTS)["target_score"].isna().all(), "there is no target to score"
