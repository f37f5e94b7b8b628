"""Test writing and reading candidates and negatives, and the checks of decoding settings."""

import tempfile
from array import array
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.data.candidates import (
    Candidate,
    Decoding,
    Negative,
    candidates_table,
    read_candidates,
    read_negatives,
    spans,
    texts_by_prompt,
    whole_prompts,
)
from selfcontrast.engines.work import write_table
from selfcontrast.errors import UserError

CANDIDATES = [
    Candidate("a", 0, "yes 🙂", [1, 2], "stop", -1.25),
    Candidate("a", 1, "", [9], "stop", -0.5),
    Candidate("b", 0, "no", [], "length", 0.0),
]


def test_candidates_round_trip(tmp_path: Path) -> None:
    for name, candidates in {"some": CANDIDATES, "none": []}.items():
        write_table(tmp_path / f"{name}.parquet", candidates_table(candidates))
        assert read_candidates(tmp_path / f"{name}.parquet") == candidates


def test_read_negatives_groups_by_prompt_in_rank_order(tmp_path: Path) -> None:
    rows = [
        Negative(name, rank, 7 - rank, "t", [rank + 1], 0.5, -1.0, 0.25) for rank in (2, 0, 1) for name in ("b", "a")
    ]
    pq.write_table(pa.Table.from_pylist([vars(row) for row in rows]), tmp_path / "n.parquet")
    read_back = read_negatives(tmp_path / "n.parquet")
    assert {name: [n.rank for n in ranked] for name, ranked in read_back.items()} == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert read_back["a"][0] == Negative("a", 0, 7, "t", array("i", [1]), 0.5, -1.0, 0.25)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"temperature": -0.1},
        {"temperature": 0.0, "samples": 2},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_new_tokens": 0},
        {"max_length": 0},
    ],
    ids=str,
)
def test_decoding_with_invalid_values_raises(wrong: dict[str, Any]) -> None:
    valid: dict[str, Any] = {"samples": 1, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 1, "max_length": 1}
    Decoding(**valid)
    with pytest.raises(UserError, match=next(iter(wrong))):
        Decoding(**{**valid, **wrong})


# --- reading whole prompts


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 9))
def test_whole_prompts_neither_splits_nor_loses_a_prompt(sizes: list[int], rows: int) -> None:
    texts_of = {f"p{i}": [f"{i} {k}" for k in range(size)] for i, size in enumerate(sizes)}
    candidates = [Candidate(n, k, t, [k], "stop", 0.0) for n, ts in texts_of.items() for k, t in enumerate(ts)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.parquet"
        pq.write_table(candidates_table(candidates), file, row_group_size=4)
        read_back: dict[str, list[str]] = {}
        for table in whole_prompts(file, ["id", "text"], rows):
            assert table.column_names == ["id", "text"]
            for name, rows_of_prompt in spans(table):
                assert name not in read_back
                read_back[name] = table["text"].to_pylist()[rows_of_prompt]
        assert read_back == texts_of
        assert dict(texts_by_prompt(file)) == texts_of
