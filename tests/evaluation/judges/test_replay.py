"""Judgments on record."""

import json
from pathlib import Path
from typing import Any

import pytest

from judging import around, question
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.judges.replay import ReplayJudge
from shared import shared_data


def recorded(folder: Path, *rows: dict[str, Any]) -> str:
    file = folder / "judgments.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def values(judge: ReplayJudge, *cases: Case) -> list[tuple[str, float | None]]:
    with judge.open(around(Path("none"))) as judging:
        return [(j.status, j.value) for j in judging(cases)]


def test_comparisons_are_found_by_the_order_in_which_they_were_shown(tmp_path: Path) -> None:
    row = {"question_id": 1, "turn": 1, "model_1": "a", "model_2": "b", "g1_judgment": "[[A]]", "g2_judgment": "[[C]]"}
    path = recorded(tmp_path, row)
    first = Case(question("1", "?"), 0, (("x",), ("y",)))
    second = Case(question("1", "?"), 0, (("y",), ("x",)), swapped=True)
    assert values(ReplayJudge(path, "a", "b"), first, second) == [("ok", 1), ("ok", 0.5)]
    # For b, its own answer came first in the second game.
    assert values(ReplayJudge(path, "b", "a"), first, second) == [("ok", 0.5), ("ok", 1)]


def test_what_is_not_on_record_is_no_judgment(tmp_path: Path) -> None:
    path = recorded(tmp_path, {"question_id": 1, "turn": 2, "model": "a", "judgment": "[[3]]"})
    two = question("1", "?", "!")
    cases = Case(two, 0, (("x",),)), Case(two, 1, (("x", "y"),))
    assert values(ReplayJudge(path, "a", None), *cases) == [("api_error", None), ("ok", 3)]


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = recorded(tmp_path, {"question_id": 1, "turn": 2, "model": "a", "judgment": "[[3]]"})
    with pytest.raises(UserError, match=r"judge\.model=b: .* holds a"):
        ReplayJudge(path, "b", None).check(None)


def test_rows_of_another_format_are_named(tmp_path: Path) -> None:
    path = recorded(tmp_path, {"question_id": 1, "model": "a"})
    with pytest.raises(UserError, match="line 1"):
        ReplayJudge(path, "a", None).check(None)


def test_a_model_that_was_judged_twice_is_reported_and_not_averaged() -> None:
    path = str(shared_data("mt_bench", "gpt4_single_judgments.jsonl"))
    with pytest.raises(UserError, match=r"judgments of mistral-orpo stand twice"):
        ReplayJudge(path, "mistral-orpo", None).check(None)


def test_recorded_gradings_of_a_whole_model() -> None:
    path = shared_data("mt_bench", "gpt4_single_judgments.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row["model"] == "mistral-orpo-mix"]
    cases = [
        Case(question(str(row["question_id"]), "?", "!"), row["turn"] - 1, (("x",) * row["turn"],)) for row in rows
    ]
    found = values(ReplayJudge(str(path), "mistral-orpo-mix", None), *cases)
    assert len(found) == 160
    assert found == [("unparsable", None) if row["score"] == -1 else ("ok", row["score"]) for row in rows]
