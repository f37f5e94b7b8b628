"""Test the replay of recorded judgments."""

import json
from pathlib import Path
from typing import Any

import pytest

from judge_cases import judge_context, question
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.judges.replay import ReplayJudge
from shared import shared_data


def write_record(folder: Path, *rows: dict[str, Any]) -> str:
    file = folder / "judgments.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def values(judge: ReplayJudge, *cases: Case) -> list[tuple[str, float | None]]:
    with judge.open(judge_context(Path("none"))) as judging:
        return [(j.status, j.value) for j in judging(cases)]


def test_replay_finds_comparisons_by_the_order_of_the_answers(tmp_path: Path) -> None:
    row = {"question_id": 1, "turn": 1, "model_1": "a", "model_2": "b", "g1_judgment": "[[A]]", "g2_judgment": "[[C]]"}
    path = write_record(tmp_path, row)
    first = Case(question("1", "?"), 0, (("x",), ("y",)))
    second = Case(question("1", "?"), 0, (("y",), ("x",)), swapped=True)
    assert values(ReplayJudge(path, "a", "b"), first, second) == [("ok", 1), ("ok", 0.5)]
    # In the second game, the judge saw the answer of b first.
    assert values(ReplayJudge(path, "b", "a"), first, second) == [("ok", 0.5), ("ok", 1)]


def test_replay_missing_judgment_is_an_api_error(tmp_path: Path) -> None:
    path = write_record(tmp_path, {"question_id": 1, "turn": 2, "model": "a", "judgment": "[[3]]"})
    dialogue = question("1", "?", "!")
    cases = Case(dialogue, 0, (("x",),)), Case(dialogue, 1, (("x", "y"),))
    assert values(ReplayJudge(path, "a", None), *cases) == [("api_error", None), ("ok", 3)]


def test_check_missing_model_is_named(tmp_path: Path) -> None:
    path = write_record(tmp_path, {"question_id": 1, "turn": 2, "model": "a", "judgment": "[[3]]"})
    with pytest.raises(UserError, match=r"judge\.model=b: .* has a\."):
        ReplayJudge(path, "b", None).check(None)


def test_check_row_of_another_format_is_named(tmp_path: Path) -> None:
    path = write_record(tmp_path, {"question_id": 1, "model": "a"})
    with pytest.raises(UserError, match="line 1"):
        ReplayJudge(path, "a", None).check(None)


def test_check_model_judged_twice_is_rejected() -> None:
    path = str(shared_data("mt_bench", "gpt4_single_judgments.jsonl"))
    with pytest.raises(UserError, match=r"judgments of mistral-orpo .*twice"):
        ReplayJudge(path, "mistral-orpo", None).check(None)


def test_replay_gradings_of_a_model_equal_the_stored_scores() -> None:
    path = shared_data("mt_bench", "gpt4_single_judgments.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row["model"] == "mistral-orpo-mix"]
    cases = [
        Case(question(str(row["question_id"]), "?", "!"), row["turn"] - 1, (("x",) * row["turn"],)) for row in rows
    ]
    replayed = values(ReplayJudge(str(path), "mistral-orpo-mix", None), *cases)
    assert len(replayed) == 160
    assert replayed == [("unparsable", None) if row["score"] == -1 else ("ok", row["score"]) for row in rows]
