"""Candidates and negatives as files, and which decodings there can be."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfcontrast.data.candidates import (
    Candidate,
    Decoding,
    Negative,
    candidates_table,
    read_candidates,
    read_negatives,
)
from selfcontrast.engines.work import write_table
from selfcontrast.errors import UserError

CANDIDATES = [
    Candidate("a", 0, "yes 🙂", [1, 2], "stop", -1.25),
    Candidate("a", 1, "", [9], "stop", -0.5),
    Candidate("b", 0, "no", [], "length", 0.0),
]


def test_candidates_read_back_as_they_were(tmp_path: Path) -> None:
    for name, candidates in {"some": CANDIDATES, "none": []}.items():
        write_table(tmp_path / f"{name}.parquet", candidates_table(candidates))
        assert read_candidates(tmp_path / f"{name}.parquet") == candidates


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
