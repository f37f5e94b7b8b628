"""The table of signals by hand, against plain loops, and its AUC against scikit-learn's."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from selfcontrast.filters.signals import SHARES, auc, ranks, signal_table

GRID = st.integers(-4, 4).map(lambda i: i / 4)
CANDIDATE = st.tuples(GRID, GRID, st.integers(-8, -1), st.integers(1, 3), st.booleans())
PROMPTS = st.lists(st.lists(CANDIDATE, min_size=1, max_size=9), min_size=1, max_size=5)


def seen_of(prompts: list[list[Any]]) -> pd.DataFrame:
    """A row per candidate, (similarity, consensus, log_prob, tokens, good), as the stage has them."""
    rows = [(p, *one) for p, own in enumerate(prompts) for one in sorted(own, key=lambda one: one[0])]
    columns = ["prompt", "similarity", "consensus", "log_prob", "tokens", "good"]
    return pd.DataFrame(rows, columns=columns).assign(score=1.0)


def ranks_of(values: list[float]) -> list[float]:
    return [sum(v < own for v in values) + (1 + sum(v == own for v in values)) / 2 for own in values]


def plain_rows(prompts: list[list[Any]]) -> dict[str, tuple[list[float], list[list[float]]]]:
    """Per signal its rank of every candidate within its prompt, and its values by prompt."""
    ordered = [sorted(own, key=lambda one: one[0]) for own in prompts]
    values = {
        "similarity": [[one[0] for one in own] for own in ordered],
        "consensus": [[one[1] for one in own] for own in ordered],
        "log_prob": [[one[2] / one[3] for one in own] for own in ordered],
    }
    each = [[ranks_of(own) for own in by_prompt] for by_prompt in values.values()]
    values["rank_sum"] = [[sum(r) for r in zip(*own, strict=True)] for own in zip(*each, strict=True)]
    among = {n: [(r - 0.5) / len(own) for own in v for r in ranks_of(own)] for n, v in values.items()}
    return {name: (among[name], values[name]) for name in values}


def plain_false_negatives(values: list[list[float]], good: list[list[bool]], fraction: float) -> float | None:
    kept = []
    for own, right in zip(values, good, strict=True):
        order = sorted(range(len(own)), key=lambda i: (own[i], i))
        kept += [right[i] for i in order[: int(np.floor(fraction * len(own) + 1e-9))]]
    return sum(kept) / len(kept) if kept else None


@given(prompts=PROMPTS)
def test_the_table_is_that_of_plain_loops(prompts: list[list[Any]]) -> None:
    table = {row["signal"]: row for row in signal_table(seen_of(prompts))}
    good = [[one[4] for one in sorted(own, key=lambda one: one[0])] for own in prompts]
    flat = [one for own in good for one in own]
    expected = plain_rows(prompts)
    assert list(table) == list(expected)
    for name, (among, values) in expected.items():
        if len(set(flat)) == 2:
            assert table[name]["auc"] == pytest.approx(roc_auc_score(flat, among))
        else:
            assert table[name]["auc"] is None
        told = [plain_false_negatives(values, good, fraction) for fraction in SHARES]
        assert table[name]["false_negatives"] == pytest.approx(told)


def test_the_table_by_hand() -> None:
    """Four candidates of one prompt, the third alone good; of a second prompt two, the lower alone good.

    By similarity the good ones have the ranks 5/8 and 1/4, the bad ones 1/8, 3/8, 7/8 and 3/4. Of the eight pairs
    5/8 wins two and 1/4 one. By consensus, where the good ones are highest, 7/8 and 3/4 win all of theirs against 1/8,
    3/8, 5/8 and 1/4.
    """
    first = [(0.1, 0.1, -9, 1, False), (0.2, 0.2, -8, 1, False), (0.3, 0.9, -1, 1, True), (0.4, 0.4, -6, 1, False)]
    second = [(0.5, 0.9, -4, 2, True), (0.6, 0.1, -6, 2, False)]
    table = {row["signal"]: row for row in signal_table(seen_of([first, second]))}
    assert table["similarity"]["auc"] == 3 / 8
    assert table["similarity"]["false_negatives"] == [2 / 4, 1 / 3, 0, None]
    assert table["consensus"]["auc"] == 1
    assert table["consensus"]["false_negatives"] == [0, 0, 0, None]
    assert table["log_prob"]["auc"] == 1
    assert table["rank_sum"]["false_negatives"] == [0, 0, 0, None]  # 3, 6, 11, 10; 5, 4


@given(values=st.lists(GRID, max_size=12), groups=st.randoms())
def test_ranks_are_within_groups_whatever_their_order(values: list[float], groups: Any) -> None:
    owners = [groups.randrange(3) for _ in values]
    found = ranks(np.array(values), np.array(owners, dtype=int)).tolist()
    for group in set(owners):
        own = [i for i, owner in enumerate(owners) if owner == group]
        assert [found[i] for i in own] == ranks_of([values[i] for i in own])
    assert ranks(np.array(values)).tolist() == ranks_of(values)


def test_an_unknown_log_probability_leaves_its_signal_out_and_no_score_leaves_all_out() -> None:
    seen = seen_of([[(0.1, 0.2, -1, 1, True), (0.2, 0.1, -2, 1, False)]])
    assert [row["signal"] for row in signal_table(seen.assign(log_prob=[-1.0, np.nan]))] == [
        "similarity",
        "consensus",
        "rank_sum",
    ]
    assert signal_table(seen.assign(score=np.nan, good=np.nan)) == []
    assert signal_table(seen[:0]) == []
    assert auc(np.array([1.0, 2.0]), np.array([True, True])) is None
