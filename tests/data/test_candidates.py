"""Candidates and negatives as files, and which decodings there can be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfcontrast.data.candidates import (
    Candidate,
    Decoding,
    Negative,
    read_candidates,
    read_negatives,
    write_candidates,
)
from selfcontrast.errors import UserError

CANDIDATES = [
    Candidate("a", 0, "yes 🙂", [1, 2], "stop", -1.25),
    Candidate("a", 1, "", [9], "stop", -0.5),
    Candidate("b", 0, "no", [], "length", 0.0),
]


def test_candidates_read_back_as_they_were(tmp_path: Path) -> None:
    write_candidates(tmp_path / "c.parquet", CANDIDATES)
    assert read_candidates(tmp_path / "c.parquet") == CANDIDATES
    write_candidates(tmp_path / "none.parquet", [])
    assert read_candidates(tmp_path / "none.parquet") == []


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "c.parquet"
    write_candidates(file, CANDIDATES)
    ids: Any = "not ids"
    with pytest.raises(pa.ArrowInvalid):
        write_candidates(file, [replace(CANDIDATES[0], token_ids=ids)])
    assert read_candidates(file) == CANDIDATES


def test_negatives_come_by_prompt_in_rank_order(tmp_path: Path) -> None:
    rows = [Negative(name, rank, 7 - rank, "t", [rank + 1], 0.5) for rank in (2, 0, 1) for name in ("b", "a")]
    pq.write_table(pa.Table.from_pylist([vars(row) for row in rows]), tmp_path / "n.parquet")
    found = read_negatives(tmp_path / "n.parquet")
    assert {name: [n.rank for n in ranked] for name, ranked in found.items()} == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert found["a"][0] == Negative("a", 0, 7, "t", [1], 0.5)


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
def test_a_decoding_that_cannot_be(wrong: dict[str, Any]) -> None:
    fine: dict[str, Any] = {"samples": 1, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 1, "max_length": 1}
    Decoding(**fine)
    with pytest.raises(UserError, match=next(iter(wrong))):
        Decoding(**{**fine, **wrong})
