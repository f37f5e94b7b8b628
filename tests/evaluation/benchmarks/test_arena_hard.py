"""Test Arena-Hard-v2.0: its files, its verdicts of five degrees, and the score computed from these verdicts."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmark_cases import FakeJudge, subject, write_answers
from judge_cases import pair
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.arena_hard import ArenaHard, read_answers
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Options
from selfcontrast.evaluation.judges import Case, Judgment
from selfcontrast.evaluation.judges.panel import Panel
from selfcontrast.evaluation.judges.prompts import judge_prompt
from selfcontrast.store import settings_of

OPTIONS = Options(confidence=0.95, n_bootstrap=200, seed=0)
PROMPTS = [
    ("u1", "hard_prompt", "coding", "Sort a list."),
    ("u2", "hard_prompt", "math", "What is {x} squared?"),
    ("u3", "creative_writing", "creative_writing", "Write a poem."),
]


def write_files(folder: Path) -> dict[str, Any]:
    questions = [dict(zip(("uid", "category", "subcategory", "prompt"), row, strict=True)) for row in PROMPTS]
    answers = [
        {"uid": uid, "model": "m", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": c}]}
        for uid, c in (("u1", {"answer": " sorted \n"}), ("u2", {"answer": "x times x"}), ("u3", "roses"))
    ]
    for name, rows in (("questions", questions), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answers_file = str(folder / "answers.jsonl")
    return {
        "questions": str(folder / "questions.jsonl"),
        "baselines": {"hard_prompt": answers_file, "creative_writing": answers_file},
    }


def benchmark(folder: Path, judge: Any, **changes: Any) -> ArenaHard:
    settings: dict[str, Any] = {
        **write_files(folder),
        "limit": None,
        "temperature": 0.0,
        "max_new_tokens": 8,
        "max_length": 64,
        "seed": 0,
        "min_coverage": 1.0,
        "judge": judge,
    }
    return ArenaHard(**{**settings, **changes})


def judge_in_five_degrees(case: Case) -> Judgment:
    """Judge the policy in both orders: u1 much, then slightly better; u2 slightly worse; u3 a tie, then much worse."""
    values = {"u1": (1.0, 0.75), "u2": (0.25, 0.25), "u3": (0.5, 0.0)}[case.example.id]
    outcome = values[case.swapped]
    return Judgment("ok", 1 - outcome if case.swapped else outcome)


def run_lines(folder: Path, judge: Any) -> dict[str, Any]:
    arena = benchmark(folder, judge)
    scores = write_answers(folder / "scores", {(uid, 0): ["an answer"] for uid, *_ in PROMPTS})
    arena.run(folder, subject([], scores))
    return {line.what: line.value for line in arena.lines({"SFT": folder}, OPTIONS)}


def test_lines_score_counts_strong_verdicts_as_three_games(tmp_path: Path) -> None:
    judge = FakeJudge(judge_in_five_degrees)
    values = run_lines(tmp_path, judge)
    games = [1, 1, 1, 1, 0, 0, 0.5, 0, 0, 0]  # u1 counts as 3 and 1 games, u2 as 1 and 1, u3 as 1 and 3
    assert values["score against the baseline"].estimate == pytest.approx(sum(games) / len(games))
    assert values["score against the baseline"].clusters == 3
    assert values["category hard_prompt"].estimate == pytest.approx(4 / 6)
    assert values["category creative_writing"].estimate == pytest.approx(0.5 / 4)
    assert values["win rate over the baseline"].estimate == pytest.approx((1 + 0 + 0.25) / 3)
    assert values["ties"].estimate == 0
    assert [(c.example.id, c.answers, c.swapped) for c in judge.cases[:2]] == [
        ("u1", (("an answer",), ("sorted",)), False),
        ("u1", (("sorted",), ("an answer",)), True),
    ]
    assert {c.example.id: c.wording for c in judge.cases} == {
        "u1": "arena_hard", "u2": "arena_hard", "u3": "arena_hard_creative",
    }  # fmt: skip
    table = pd.read_parquet(tmp_path / JUDGMENTS)
    assert list(table["outcome"]) == [1, 0.75, 0.25, 0.25, 0.5, 0]


def test_lines_score_of_a_panel_rounds_to_the_nearest_degree(tmp_path: Path) -> None:
    """A strong and a slight win average to 0.875, which counts as one game. Two strong wins count as three."""
    mean = {"u1": (1.0, 0.75), "u2": (1.0, 1.0), "u3": (0.75, 0.25)}
    judges = {
        name: FakeJudge(lambda c, index=index: Judgment("ok", abs(c.swapped - mean[c.example.id][index])))
        for index, name in enumerate("ab")
    }
    values = run_lines(tmp_path, Panel(judges))
    assert values["score against the baseline"].estimate == pytest.approx((2 * 1 + 6 * 1 + 2 * 0.5) / 10)


def test_judge_prompt_names_five_degrees_and_fences_answers() -> None:
    case = pair("mine {x}", "yours")
    prompt = judge_prompt(Case(case.example, 0, case.answers, wording="arena_hard"), 1000)
    creative = judge_prompt(Case(case.example, 0, case.answers, wording="arena_hard_creative"), 1000)
    for verdict in ("[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]", "[[B>>A]]"):
        assert verdict in prompt
        assert verdict in creative
    assert "mine {x}" in prompt
    assert "First answer the user yourself" in prompt
    assert "yourself" not in creative


def test_own_prompts_leave_out_categories_without_a_baseline(tmp_path: Path) -> None:
    answers = write_files(tmp_path)["baselines"]["hard_prompt"]
    arena = benchmark(tmp_path, FakeJudge(judge_in_five_degrees), baselines={"hard_prompt": answers})
    arena.check(None)
    assert arena.own_prompts() == {"u1": "Sort a list.", "u2": "What is {x} squared?"}
    request = arena.answer_request([])
    assert request is not None
    ((decoding, examples),) = request.questions
    assert (decoding.samples, [e.id for e in examples]) == (1, ["u1", "u2"])
    assert list(benchmark(tmp_path, FakeJudge(judge_in_five_degrees), limit=1).own_prompts()) == ["u1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": {}}, r"baselines=\{\}"),
        ({"baselines": {"maths": "answers"}}, r"baselines\.maths: .*questions\.jsonl"),
        ({"questions": "answers"}, r"answers\.jsonl, .*'category' must be a text"),
        ({"baselines": {"hard_prompt": "questions"}}, r"questions\.jsonl, .*uid and messages"),
        ({"baselines": {"hard_prompt": "short"}}, r"baselines\.hard_prompt=.*short\.jsonl: .*u2"),
    ],
    ids=str,
)
def test_check_unusable_files_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_files(tmp_path)
    (tmp_path / "short.jsonl").write_text((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    paths: dict[str, Any] = {
        key: {name: str(tmp_path / f"{file}.jsonl") for name, file in value.items()}
        if isinstance(value, dict)
        else str(tmp_path / f"{value}.jsonl")
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        benchmark(tmp_path, FakeJudge(judge_in_five_degrees), **paths).check(None)


def test_check_logprob_verdict_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.verdict=logprob"):
        benchmark(tmp_path, FakeJudge("logprob")).check(None)  # type: ignore[arg-type]


def test_settings_depend_on_the_content_of_the_baseline_not_its_path(tmp_path: Path) -> None:
    arena = benchmark(tmp_path, FakeJudge(judge_in_five_degrees))
    moved = tmp_path / "moved"
    moved.mkdir()
    assert settings_of(benchmark(moved, FakeJudge(judge_in_five_degrees))) == settings_of(arena)
    file = moved / "answers.jsonl"
    file.write_text(file.read_text().replace("roses", "violets"))
    assert read_answers(str(file))["u3"] == "violets"
    other = benchmark(tmp_path, FakeJudge(judge_in_five_degrees), baselines={"creative_writing": str(file)})
    assert settings_of(other) != settings_of(arena)
