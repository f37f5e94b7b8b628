"""Compare the table of signals with values by hand, with plain loops, and with scikit-learn's AUC."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from selfcontrast.filters.signals import FRACTIONS, auc, ranks, signal_table

GRID = st.integers(-4, 4).map(lambda i: i / 4)
CANDIDATE = st.tuples(GRID, GRID, st.integers(-8, -1), st.integers(1, 3), st.booleans())
PROMPTS = st.lists(st.lists(CANDIDATE, min_size=1, max_size=9), min_size=1, max_size=5)


def candidate_frame(prompts: list[list[Any]]) -> pd.DataFrame:
    """Return the table of candidates, each given as (similarity, consensus, log_prob, tokens, good)."""
    rows = [(p, *c) for p, candidates in enumerate(prompts) for c in sorted(candidates, key=lambda c: c[0])]
    columns = ["prompt", "similarity", "consensus", "log_prob", "tokens", "good"]
    return pd.DataFrame(rows, columns=columns).assign(score=1.0)


def ranks_of(values: list[float]) -> list[float]:
    return [sum(v < value for v in values) + (1 + sum(v == value for v in values)) / 2 for value in values]


def plain_rows(prompts: list[list[Any]]) -> dict[str, tuple[list[float], list[list[float]]]]:
    """Return per signal the relative rank of every candidate within its prompt, and the values by prompt."""
    ordered = [sorted(candidates, key=lambda c: c[0]) for candidates in prompts]
    values = {
        "similarity": [[c[0] for c in prompt] for prompt in ordered],
        "consensus": [[c[1] for c in prompt] for prompt in ordered],
        "log_prob": [[c[2] / c[3] for c in prompt] for prompt in ordered],
    }
    ranked = [[ranks_of(prompt) for prompt in by_prompt] for by_prompt in values.values()]
    values["rank_sum"] = [[sum(r) for r in zip(*prompt, strict=True)] for prompt in zip(*ranked, strict=True)]
    relative = {n: [(r - 0.5) / len(prompt) for prompt in v for r in ranks_of(prompt)] for n, v in values.items()}
    return {name: (relative[name], values[name]) for name in values}


def plain_false_negatives(values: list[list[float]], good: list[list[bool]], fraction: float) -> float | None:
    kept = []
    for prompt, right in zip(values, good, strict=True):
        order = sorted(range(len(prompt)), key=lambda i: (prompt[i], i))
        kept += [right[i] for i in order[: int(np.floor(fraction * len(prompt) + 1e-9))]]
    return sum(kept) / len(kept) if kept else None


@given(prompts=PROMPTS)
def test_signal_table_equals_plain_loops(prompts: list[list[Any]]) -> None:
    table = {row["signal"]: row for row in signal_table(candidate_frame(prompts))}
    good = [[c[4] for c in sorted(candidates, key=lambda c: c[0])] for candidates in prompts]
    flat = [label for prompt in good for label in prompt]
    expected = plain_rows(prompts)
    assert list(table) == list(expected)
    for name, (relative, values) in expected.items():
        if len(set(flat)) == 2:
            assert table[name]["auc"] == pytest.approx(roc_auc_score(flat, relative))
        else:
            assert table[name]["auc"] is None
        rates = [plain_false_negatives(values, good, fraction) for fraction in FRACTIONS]
        assert table[name]["false_negatives"] == pytest.approx(rates)


def test_signal_table_equals_values_by_hand() -> None:
    """The first prompt has one good candidate of four, the third. The second prompt has one of two, the first.

    By similarity, the good candidates have the ranks 5/8 and 1/4, and the bad candidates 1/8, 3/8, 7/8 and 3/4. So the
    good candidate has the higher rank in 2 + 1 of 8 pairs. By consensus, the good candidates have the ranks 7/8 and
    3/4, above all bad candidates: 1/8, 3/8, 5/8 and 1/4.
    """
    first = [(0.1, 0.1, -9, 1, False), (0.2, 0.2, -8, 1, False), (0.3, 0.9, -1, 1, True), (0.4, 0.4, -6, 1, False)]
    second = [(0.5, 0.9, -4, 2, True), (0.6, 0.1, -6, 2, False)]
    table = {row["signal"]: row for row in signal_table(candidate_frame([first, second]))}
    assert table["similarity"]["auc"] == 3 / 8
    assert table["similarity"]["false_negatives"] == [2 / 4, 1 / 3, 0, None]
    assert table["consensus"]["auc"] == 1
    assert table["consensus"]["false_negatives"] == [0, 0, 0, None]
    assert table["log_prob"]["auc"] == 1
    assert table["rank_sum"]["false_negatives"] == [0, 0, 0, None]  # the rank sums are 3, 6, 11, 10 and 5, 4


@given(values=st.lists(GRID, max_size=12), draw=st.randoms())
def test_ranks_are_computed_within_groups_in_any_order(values: list[float], draw: Any) -> None:
    groups = [draw.randrange(3) for _ in values]
    result = ranks(np.array(values), np.array(groups, dtype=int)).tolist()
    for group in set(groups):
        members = [i for i, other in enumerate(groups) if other == group]
        assert [result[i] for i in members] == ranks_of([values[i] for i in members])
    assert ranks(np.array(values)).tolist() == ranks_of(values)


def test_signal_table_omits_unknown_log_probabilities_and_is_empty_without_scores() -> None:
    candidates = candidate_frame([[(0.1, 0.2, -1, 1, True), (0.2, 0.1, -2, 1, False)]])
    assert [row["signal"] for row in signal_table(candidates.assign(log_prob=[-1.0, np.nan]))] == [
        "similarity",
        "consensus",
        "rank_sum",
    ]
    assert signal_table(candidates.assign(score=np.nan, good=np.nan)) == []
    assert signal_table(candidates[:0]) == []
    assert auc(np.array([1.0, 2.0]), np.array([True, True])) is None
