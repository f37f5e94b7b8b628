"""Compare diagnostics with values computed by hand, and self-BLEU with sacrebleu."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from selfcontrast.filters import diagnostics
from selfcontrast.filters.diagnostics import (
    correlation_within,
    cuts,
    distinct_n,
    diversity,
    histogram,
    quantiles,
    self_bleu,
)

TEXT = st.lists(st.integers(0, 4), max_size=9)


def test_distinct_n_equals_count_by_hand() -> None:
    texts = [[1, 2, 3], [1, 2]]
    assert distinct_n(texts, 1) == 3 / 5
    assert distinct_n(texts, 2) == 2 / 3  # the bigrams are 12, 23 and 12
    assert distinct_n(texts, 3) == 1
    assert distinct_n([[1]], 2) == 0
    assert distinct_n([[1, 2], [3, 4]], 2) == 1  # no n-gram reaches from one text into the next


@given(st.lists(TEXT.filter(bool), min_size=2, max_size=6))
def test_self_bleu_equals_sacrebleu(texts: list[list[int]]) -> None:
    bleu = BLEU(tokenize="none", smooth_method="add-k", smooth_value=1, effective_order=True)
    lines = [" ".join(map(str, text)) for text in texts]
    scores = [bleu.sentence_score(line, lines[:i] + lines[i + 1 :]).score / 100 for i, line in enumerate(lines)]
    assert self_bleu(texts) == pytest.approx(np.mean(scores), abs=1e-9)


def test_self_bleu_is_1_for_copies_and_0_for_disjoint_texts() -> None:
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1)
    assert self_bleu([[1, 2], [3, 4]]) == 0
    assert self_bleu([[], [1, 2]]) == 0


def test_diversity_averages_over_prompts_with_several_texts() -> None:
    means = diversity([([[1, 2], [1, 2]], [[1, 2]]), ([[1], [2], [3]], [[1], [2]])])
    assert means["distinct_1_candidates"] == (2 / 4 + 1) / 2
    assert means["distinct_1_negatives"] == 1
    assert means["self_bleu_negatives"] == 0
    assert set(diversity([([[1]], [])]).values()) == {None}


def test_quantiles_and_histogram_equal_values_by_hand() -> None:
    assert quantiles([0, 10]) == [1, 5, 9]
    assert quantiles([]) == []
    counts = histogram([-1, 0.0, 0.019, 0.021, 1.0])
    assert (len(counts), sum(counts)) == (100, 5)
    assert [counts[i] for i in (0, 50, 51, 99)] == [1, 2, 1, 1]


def test_correlation_within_ignores_group_means() -> None:
    """In the first case, the correlation over all values is negative, and within each group it is 1."""
    assert correlation_within([0, 0, 1, 1], [1, 2, 11, 12], [9, 10, 0, 1]) == pytest.approx(1)
    assert correlation_within([0, 0, 1, 1], [1, 2, 11, 12], [9, 8, 3, 1]) == pytest.approx(-0.9486832980505138)
    assert correlation_within([0, 1], [1, 2], [3, 4]) is None


def candidate_frame(*prompts: tuple[list[float], list[bool]]) -> pd.DataFrame:
    rows = [(i, cosine, kept) for i, prompt in enumerate(prompts) for cosine, kept in zip(*prompt, strict=True)]
    return pd.DataFrame(rows, columns=["prompt", "similarity", "kept"])


def test_cuts_count_only_edges_with_rejected_candidates_beyond_them() -> None:
    lowest = candidate_frame(([0.1, 0.2, 0.3], [True, True, False]), ([0.5, 0.6], [True, False]), ([0.9], [True]))
    edges = cuts(lowest)
    assert edges["low"] == []
    assert edges["high"] == pytest.approx([0.23, 0.35, 0.47])  # quantiles of 0.2 and 0.5; the third prompt has no cut
    window = cuts(candidate_frame(([0.1, 0.2, 0.3], [False, True, False])))
    assert (window["low"], window["high"]) == (pytest.approx([0.2] * 3), pytest.approx([0.2] * 3))
    assert cuts(candidate_frame(([0.1, 0.2], [False, False]))) == {"low": [], "high": []}
    assert cuts(candidate_frame(([0.1, 0.2, 0.3], [True, False, True]))) == {
        "low": [],
        "high": [],
    }  # this selection is not by similarity
    assert cuts(candidate_frame()) == {"low": [], "high": []}


def summary(**changes: Any) -> dict[str, Any]:
    values = {
        "prompts": 2048, "prompts_used": 2041, "prompts_dropped_for_distinct": 4, "prompts_dropped_for_kept": 3,
        "prompts_refilled": 0, "duplicate_share": 0.01, "empty_share": 0.002, "copies_of_target_share": 0.0,
        "similarity_candidates": 0.61, "similarity_negatives": 0.55, "tokens_candidates": 23.0,
        "tokens_negatives": 24.5, "self_bleu_candidates": 0.4, "self_bleu_negatives": 0.3,
        "false_negatives_before": 0.12, "false_negatives_after": 0.05,
    }  # fmt: skip
    return {**values, **changes}


def test_lines_name_every_known_number() -> None:
    first, second = diagnostics.lines(summary())
    for part in ("2,041 of 2,048 prompts", "4 with too few distinct", "3 with too few kept"):
        assert part in first
    for part in ("1.0% repeated", "0.2% empty", "0.0% copies"):
        assert part in first
    assert second == (
        "candidates → negatives: similarity 0.610 → 0.550, tokens 23.0 → 24.5, self-BLEU 0.400 → 0.300, "
        "false negatives 12.0% → 5.0%"
    )
    scored = diagnostics.lines(summary(auc_similarity=0.7521, auc_consensus=0.8339, auc_rank_sum=None))
    assert len(scored) == 3
    assert scored[2].endswith(": similarity 0.752, consensus 0.834")
    unknown = summary(false_negatives_before=None, self_bleu_negatives=None, prompts_refilled=7)
    first, second = diagnostics.lines(unknown)
    assert ", 7 refilled;" in first
    assert second == "candidates → negatives: similarity 0.610 → 0.550, tokens 23.0 → 24.5"
