"""Arena-Hard-v2.0: its files, its verdicts in five degrees, and the score that they give."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from judging import pair
from measuring import Telling, answered, subject
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


def files(folder: Path) -> dict[str, Any]:
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
        **files(folder),
        "limit": None,
        "temperature": 0.0,
        "max_new_tokens": 8,
        "max_length": 64,
        "seed": 0,
        "min_coverage": 1.0,
        "judge": judge,
    }
    return ArenaHard(**{**settings, **changes})


def degrees(case: Case) -> Judgment:
    """Of the policy, as the judge would say it: u1 strongly better in one order and slightly in the other, u2 slightly
    worse in both, u3 a tie and strongly worse."""
    values = {"u1": (1.0, 0.75), "u2": (0.25, 0.25), "u3": (0.5, 0.0)}[case.example.id]
    own = values[case.swapped]
    return Judgment("ok", 1 - own if case.swapped else own)


def measured(folder: Path, judge: Any) -> dict[str, Any]:
    own = benchmark(folder, judge)
    scores = answered(folder / "scores", {(uid, 0): ["an answer"] for uid, *_ in PROMPTS})
    own.run(folder, subject([], scores))
    return {line.what: line.value for line in own.lines({"SFT": folder}, OPTIONS)}


def test_the_score_is_the_mean_over_games_with_strong_verdicts_three_times(tmp_path: Path) -> None:
    judge = Telling(degrees)
    found = measured(tmp_path, judge)
    games = [1, 1, 1, 1, 0, 0, 0.5, 0, 0, 0]  # u1: 3 and 1; u2: 1 and 1; u3: 1 and 3
    assert found["score against the baseline"].estimate == pytest.approx(sum(games) / len(games))
    assert found["score against the baseline"].clusters == 3
    assert found["category hard_prompt"].estimate == pytest.approx(4 / 6)
    assert found["category creative_writing"].estimate == pytest.approx(0.5 / 4)
    assert found["win rate over the baseline"].estimate == pytest.approx((1 + 0 + 0.25) / 3)
    assert found["ties"].estimate == 0
    assert [(c.example.id, c.answers, c.swapped) for c in judge.asked[:2]] == [
        ("u1", (("an answer",), ("sorted",)), False),
        ("u1", (("sorted",), ("an answer",)), True),
    ]
    assert {c.example.id: c.wording for c in judge.asked} == {
        "u1": "arena_hard", "u2": "arena_hard", "u3": "arena_hard_creative",
    }  # fmt: skip
    table = pd.read_parquet(tmp_path / JUDGMENTS)
    assert list(table["outcome"]) == [1, 0.75, 0.25, 0.25, 0.5, 0]


def test_a_panels_mean_lies_between_the_verdicts(tmp_path: Path) -> None:
    """Strong and slight: 0.875, still a game once; strong and strong three times."""
    mean = {"u1": (1.0, 0.75), "u2": (1.0, 1.0), "u3": (0.75, 0.25)}
    judges = {
        name: Telling(lambda c, at=at: Judgment("ok", abs(c.swapped - mean[c.example.id][at])))
        for at, name in enumerate("ab")
    }
    found = measured(tmp_path, Panel(judges))
    assert found["score against the baseline"].estimate == pytest.approx((2 * 1 + 6 * 1 + 2 * 0.5) / 10)


def test_the_judge_is_asked_for_five_degrees_and_answers_are_fenced() -> None:
    case = pair("mine {x}", "yours")
    prompt = judge_prompt(Case(case.example, 0, case.answers, wording="arena_hard"), 1000)
    creative = judge_prompt(Case(case.example, 0, case.answers, wording="arena_hard_creative"), 1000)
    for verdict in ("[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]", "[[B>>A]]"):
        assert verdict in prompt
        assert verdict in creative
    assert "mine {x}" in prompt
    assert "First answer the user yourself" in prompt
    assert "yourself" not in creative


def test_prompts_of_a_category_without_a_baseline_are_left_out(tmp_path: Path) -> None:
    answers = files(tmp_path)["baselines"]["hard_prompt"]
    own = benchmark(tmp_path, Telling(degrees), baselines={"hard_prompt": answers})
    own.check(None)
    assert own.own_prompts() == {"u1": "Sort a list.", "u2": "What is {x} squared?"}
    asking = own.asking([])
    assert asking is not None
    ((decoding, asked),) = asking.asked
    assert (decoding.samples, [e.id for e in asked]) == (1, ["u1", "u2"])
    assert list(benchmark(tmp_path, Telling(degrees), limit=1).own_prompts()) == ["u1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": {}}, r"baselines=\{\}: a file of answers for each category"),
        ({"baselines": {"maths": "answers"}}, r"baselines\.maths: .* has no prompt of that category"),
        ({"questions": "answers"}, r"answers\.jsonl, .*'category' must be a text"),
        ({"baselines": {"hard_prompt": "questions"}}, r"no answer of Arena-Hard's format"),
        ({"baselines": {"hard_prompt": "short"}}, r"baselines\.hard_prompt=.*: no answer to the prompt u2"),
    ],
    ids=str,
)
def test_files_that_cannot_be_used_are_refused_before_compute(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    files(tmp_path)
    (tmp_path / "short.jsonl").write_text((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    placed: dict[str, Any] = {
        key: {name: str(tmp_path / f"{file}.jsonl") for name, file in value.items()}
        if isinstance(value, dict)
        else str(tmp_path / f"{value}.jsonl")
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        benchmark(tmp_path, Telling(degrees), **placed).check(None)


def test_verdicts_that_are_weighed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.verdict=logprob cannot weigh five"):
        benchmark(tmp_path, Telling("logprob")).check(None)  # type: ignore[arg-type]


def test_another_baseline_is_another_benchmark_wherever_the_file_lies(tmp_path: Path) -> None:
    own = benchmark(tmp_path, Telling(degrees))
    moved = tmp_path / "moved"
    moved.mkdir()
    assert settings_of(benchmark(moved, Telling(degrees))) == settings_of(own)
    file = moved / "answers.jsonl"
    file.write_text(file.read_text().replace("roses", "violets"))
    assert read_answers(str(file))["u3"] == "violets"
    other = benchmark(tmp_path, Telling(degrees), baselines={"creative_writing": str(file)})
    assert settings_of(other) != settings_of(own)
