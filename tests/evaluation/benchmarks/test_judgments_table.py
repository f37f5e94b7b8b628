"""All judgments of a benchmark, side by side."""

from pathlib import Path

import pandas as pd

from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS
from selfcontrast.evaluation.benchmarks.table import judgments_table


def judged(folder: Path, count: int, **columns: object) -> Path:
    folder.mkdir()
    own = {"question": "q?", "status": "ok", "reply": "so", **columns}
    pd.DataFrame([{"id": str(i), "answer": f"a{i}", **own} for i in range(count)]).to_parquet(folder / JUDGMENTS)
    return folder


def test_prompt_answers_verdict_and_reason_of_every_judgment(tmp_path: Path) -> None:
    columns = {"other": "b", "outcome": 0.5, "swapped": True}
    folders = {name: judged(tmp_path / name, 3, **columns) for name in ("SFT", "Self-Contrast")}
    table = judgments_table(folders, None)
    assert list(table.columns) == [
        *("system", "prompt", "answer", "other", "verdict", "reason", "status"),
        *("id", "swapped"),
    ]
    assert list(table["system"]) == ["SFT"] * 3 + ["Self-Contrast"] * 3
    assert list(table["answer"]) == ["a0", "a1", "a2"] * 2


def test_of_many_some_evenly_spread(tmp_path: Path) -> None:
    table = judgments_table({"SFT": judged(tmp_path / "SFT", 101, rating=4.0)}, 5)
    assert list(table["answer"]) == ["a0", "a25", "a50", "a75", "a100"]
    assert list(table["verdict"]) == [4.0] * 5


def test_a_benchmark_without_judgments_has_none(tmp_path: Path) -> None:
    assert len(judgments_table({"SFT": tmp_path}, 5)) == 0
