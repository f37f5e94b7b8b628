"""Test the table of all judgments of a benchmark."""

from pathlib import Path

import pandas as pd

from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS
from selfcontrast.evaluation.benchmarks.table import judgments_table


def write_judgments(folder: Path, count: int, **columns: object) -> Path:
    folder.mkdir()
    row = {"question": "q?", "status": "ok", "reply": "so", **columns}
    pd.DataFrame([{"id": str(i), "answer": f"a{i}", **row} for i in range(count)]).to_parquet(folder / JUDGMENTS)
    return folder


def test_judgments_table_has_a_row_per_judgment_and_system(tmp_path: Path) -> None:
    columns = {"other": "b", "outcome": 0.5, "swapped": True}
    folders = {name: write_judgments(tmp_path / name, 3, **columns) for name in ("SFT", "Self-Contrast")}
    table = judgments_table(folders, None)
    assert list(table.columns) == [
        *("system", "prompt", "answer", "other", "verdict", "reason", "status"),
        *("id", "swapped"),
    ]
    assert list(table["system"]) == ["SFT"] * 3 + ["Self-Contrast"] * 3
    assert list(table["answer"]) == ["a0", "a1", "a2"] * 2


def test_judgments_table_with_max_rows_keeps_evenly_spaced_rows(tmp_path: Path) -> None:
    table = judgments_table({"SFT": write_judgments(tmp_path / "SFT", 101, rating=4.0)}, 5)
    assert list(table["answer"]) == ["a0", "a25", "a50", "a75", "a100"]
    assert list(table["verdict"]) == [4.0] * 5


def test_judgments_table_without_judgments_is_empty(tmp_path: Path) -> None:
    assert len(judgments_table({"SFT": tmp_path}, 5)) == 0
