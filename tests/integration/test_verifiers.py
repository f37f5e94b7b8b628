"""Run a job on a user's own data with a verifier: the verifier decides the scores, and the oracle filter uses it."""

import json
from pathlib import Path

import pandas as pd
import pytest

from jobs import TINY, read_result, run_train, stages
from selfcontrast.data.graders import final_number

SMALL = [s for s in TINY if not s.startswith("data.")]


@pytest.mark.slow
def test_job_on_own_rows_is_scored_by_their_answers(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": f"Say {i}.", "target": f"It is {i % 3}.", "gold": i % 3} for i in range(120)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("data=jsonl", "data.path=d.jsonl", "data.answer_column=gold", "verifier=final_number")
    oracle = ("filter=oracle", "filter.on_shortage=drop_everywhere", "filter.max_negatives=1", "negatives=1")
    ended = run_train(*data, *SMALL, *oracle, "sft.epochs=8", "tracking=none", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = read_result(tmp_path / "out")
    assert result["comparison"]["measure"] == "score"
    by_name = stages(result)
    assert by_name["filter"]["summary"]["false_negatives_before"] > 0  # some candidates are right
    assert by_name["filter"]["summary"]["false_negatives_after"] == 0  # the oracle filter drops them
    answers = pd.read_parquet(Path(by_name["evaluate SFT"]["path"]) / "answers.parquet")
    gold = {row["id"]: row["gold"] for row in rows}
    right = [final_number(text) == gold[name] for name, text in zip(answers["id"], answers["text"], strict=True)]
    assert answers["score"].tolist() == [float(value) for value in right]
    assert any(right)
    assert not all(right)
