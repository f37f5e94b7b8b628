"""Test MT-Bench, in which a judge grades or compares every answer of a dialogue."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmark_cases import FakeJudge, sample_subject, subject, write_answers
from judge_cases import LengthVerifier, judge_context
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Options
from selfcontrast.evaluation.benchmarks.mt_bench import OWN_QUESTIONS, MTBench, _mean
from selfcontrast.evaluation.benchmarks.questions import read_questions
from selfcontrast.evaluation.judges import Case, Judgment
from selfcontrast.evaluation.judges.panel import Panel
from selfcontrast.evaluation.judges.verifier import VerifierJudge
from shared import shared_data
from tiny import example, policy_folder

OPTIONS = Options(confidence=0.95, n_bootstrap=200, seed=0)
ROWS = [
    {"question_id": 1, "category": "math", "turns": ["cat", "dog"], "reference": ["one", "two"]},
    {"question_id": 2, "category": "writing", "turns": ["the cat", "mat"], "reference": ["three", "four"]},
]


def benchmark(judge: Any, **changes: Any) -> MTBench:
    settings: dict[str, Any] = {
        "grading": "single",
        "questions": None,
        "references": None,
        "guided": ["math"],
        "limit": None,
        "temperature": 0.0,
        "temperatures": {"writing": 0.7},
        "samples": 3,
        "max_new_tokens": 4,
        "max_length": 120,
        "seed": 0,
        "min_coverage": 1.0,
        "judge": judge,
    }
    return MTBench(**{**settings, **changes})


def write_questions(folder: Path, *rows: dict[str, Any]) -> str:
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def prefer_longer(case: Case) -> Judgment:
    first, second = (len(answers[-1]) for answers in case.answers)
    return Judgment("ok", 0.5 + 0.5 * ((first > second) - (second > first)))


def grade_by_turn(case: Case) -> Judgment:
    return Judgment("ok", 3.0 + case.turn + case.sample)


def test_run_grades_every_turn_of_every_sample(tmp_path: Path) -> None:
    """Questions have one dialogue in greedy categories and `samples` in others. Only guided ones get references."""
    judge = FakeJudge(grade_by_turn)
    mt_bench = benchmark(judge, questions=write_questions(tmp_path, *ROWS))
    summary = mt_bench.run(
        tmp_path, sample_subject(mt_bench, [], tmp_path / "answers", policy_folder(tmp_path / "policy"))
    )
    assert sorted((c.example.id, c.sample, c.turn, c.references) for c in judge.cases) == [
        ("1", 0, 0, ("one",)),
        ("1", 0, 1, ("one", "two")),
        *(("2", sample, turn, ()) for sample in range(3) for turn in range(2)),
    ]
    assert all(len(c.answers[0]) == c.turn + 1 for c in judge.cases)
    assert (summary["questions"], summary["judgments"], summary["guided"]) == (2, 8, 2)


def test_own_prompts_are_the_questions_of_the_file(tmp_path: Path) -> None:
    mt_bench = benchmark(FakeJudge(grade_by_turn), questions=write_questions(tmp_path, *ROWS))
    assert mt_bench.own_prompts() == {"1": "cat\ndog", "2": "the cat\nmat"}
    assert benchmark(FakeJudge(grade_by_turn), questions=write_questions(tmp_path, *ROWS), limit=1).own_prompts() == {
        "1": "cat\ndog"
    }
    # Without a file, the questions are held-out prompts, which are always checked for contamination.
    assert benchmark(FakeJudge(grade_by_turn)).own_prompts() == {}


def test_lines_report_means_by_turn_and_category_and_difference_from_sft(tmp_path: Path) -> None:
    """Each grade of the policy is one point better. The difference leaves out the answer without a usable grade."""
    mt_bench = benchmark(FakeJudge(grade_by_turn))
    grades = {("a", 0): 2.0, ("a", 1): 4.0, ("b", 0): 6.0, ("b", 1): 9.0}
    for name, gain in (("SFT", 0.0), ("Self-Contrast", 1.0)):
        rows = [
            {"id": i, "category": f"of {i}", "sample": 0, "turn": turn, "status": "ok", "rating": grade + gain}
            for (i, turn), grade in grades.items()
        ]
        if gain:
            rows[-1] |= {"status": "truncated", "rating": None}
        (tmp_path / name).mkdir()
        pd.DataFrame(rows).astype({"rating": "float64"}).to_parquet(tmp_path / name / JUDGMENTS)
    lines = mt_bench.lines({name: tmp_path / name for name in ("SFT", "Self-Contrast")}, OPTIONS)
    values = {(line.system, line.what): line.value.estimate for line in lines}
    assert values == {
        ("SFT", "mean"): 21 / 4,
        ("SFT", "turn 1"): 4,
        ("SFT", "turn 2"): 6.5,
        ("SFT", "category of a"): 3,
        ("SFT", "category of b"): 7.5,
        ("Self-Contrast", "mean"): 5,
        ("Self-Contrast", "difference from SFT"): 1,
        ("Self-Contrast", "turn 1"): 5,
        ("Self-Contrast", "turn 2"): 5,
        ("Self-Contrast", "category of a"): 4,
        ("Self-Contrast", "category of b"): 7,
    }


def test_run_pairwise_compares_every_turn_with_sft_in_both_orders(tmp_path: Path) -> None:
    """The judge prefers the longer answer. Of 4 comparisons, the policy wins 2, ties 1 and loses 1: 2.5 / 4.

    Only the guided category has a reference.
    """
    judge = FakeJudge(prefer_longer)
    mt_bench = benchmark(judge, grading="pairwise", questions=write_questions(tmp_path, *ROWS))
    answers = write_answers(tmp_path / "own", {("1", 0): ["long", "x"], ("2", 0): ["long", "same"]})
    base = write_answers(tmp_path / "base", {("1", 0): ["a", "long"], ("2", 0): ["a", "same"]})
    assert mt_bench.relative
    summary = mt_bench.run(tmp_path, subject([], answers, label="Self-Contrast", baseline=base))
    assert (summary["judgments"], summary["questions"], summary["guided"]) == (8, 2, 2)
    assert [(c.turn, c.answers, c.references, c.swapped) for c in judge.cases[2:4]] == [
        (1, (("long", "x"), ("a", "long")), ("one", "two"), False),
        (1, (("a", "long"), ("long", "x")), ("one", "two"), True),
    ]
    values = {line.what: line.value.estimate for line in mt_bench.lines({"Self-Contrast": tmp_path}, OPTIONS)}
    assert values["win rate over SFT"] == 2.5 / 4
    assert values["verdicts that flip with the order"] == 0
    assert (values["turn 1"], values["turn 2"]) == (1, 0.25)
    assert (values["category math"], values["category writing"]) == (0.5, 0.75)
    with pytest.raises(UserError, match=r"grading=both: .*single.*pairwise"):
        benchmark(judge, grading="both")


def test_answer_request_key_ignores_judge_grading_and_path(tmp_path: Path) -> None:
    file = write_questions(tmp_path, *ROWS)
    key = benchmark(FakeJudge(grade_by_turn), questions=file).answer_request([]).fingerprint()
    (tmp_path / "moved.jsonl").write_text((tmp_path / "questions.jsonl").read_text())
    same = benchmark(FakeJudge(prefer_longer), questions=str(tmp_path / "moved.jsonl"), grading="pairwise", guided=[])
    assert same.answer_request([]).fingerprint() == key
    for changes in ({"limit": 1}, {"temperature": 0.5}, {"samples": 2}, {"seed": 1}, {"max_new_tokens": 5}):
        assert benchmark(FakeJudge(grade_by_turn), questions=file, **changes).answer_request([]).fingerprint() != key


def test_run_without_questions_file_uses_the_dialogues_of_the_data(tmp_path: Path) -> None:
    examples = [example("s", "cat?", "a cat"), example("d", "dog?", "a dog", turns=["the dog", "cat"])]
    mt_bench = benchmark(VerifierJudge())
    policy = policy_folder(tmp_path / "policy")
    context = judge_context(tmp_path, LengthVerifier())
    assert mt_bench.skip_reason(examples, LengthVerifier()) is None
    summary = mt_bench.run(tmp_path, sample_subject(mt_bench, examples, tmp_path / "answers", policy, context=context))
    assert summary["questions"] == 1
    for row in pd.read_parquet(tmp_path / JUDGMENTS).to_dict("records"):
        assert row["rating"] == pytest.approx(1 + 9 * min(1, len(row["answer"]) / 10))


@pytest.mark.parametrize(
    "judge",
    [
        VerifierJudge(),
        Panel({"verifier": VerifierJudge(), "other": FakeJudge(prefer_longer)}),
        Panel(
            {
                "panel": Panel({"other": FakeJudge(prefer_longer), "verifier": VerifierJudge()}),
                "another": FakeJudge(grade_by_turn),
            }
        ),
    ],
    ids=["alone", "in a panel", "in a panel of a panel"],
)
def test_skip_reason_names_missing_dialogues_or_verifier(judge: Any) -> None:
    mt_bench = benchmark(judge)
    assert (
        mt_bench.skip_reason([example("s", "cat?", "a cat")], LengthVerifier()) == "the data has no dialogues to play"
    )
    assert mt_bench.skip_reason([], None) == "there is no verifier"
    mt_bench.check(None)
    with pytest.raises(UserError, match="judge=verifier"):
        benchmark(judge, questions="ours").check(LengthVerifier())


def test_read_questions_of_this_project_finds_ten_per_category() -> None:
    benchmark(FakeJudge(grade_by_turn), questions="ours").check(None)
    questions = read_questions(str(OWN_QUESTIONS), None)
    categories = [e.category for e in questions.examples]
    assert {c: categories.count(c) for c in categories} == dict.fromkeys(
        ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"], 10
    )
    assert all(len(e.turns) == 2 for e in questions.examples)
    assert {e.id for e in questions.examples if e.category in ("math", "reasoning", "coding")} <= set(
        questions.references
    )


def test_read_questions_of_fastchat_finds_80_questions_and_30_references() -> None:
    questions = read_questions(
        str(shared_data("mt_bench", "question.jsonl")), str(shared_data("mt_bench", "reference_gpt-4.jsonl"))
    )
    assert (len(questions.examples), len(questions.references)) == (80, 30)
    assert questions.examples[0].id == "81"
    assert questions.references["101"][0].startswith("If you have just overtaken the second person")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1, "turns": "cat"}], "'turns' must be a list"),
        ([{"question_id": 1, "turns": []}], "'turns' must be a list"),
        ([ROWS[0], ROWS[0]], "question 1 "),
        ([{**ROWS[0], "reference": ["one"]}], "question 1 .*reference"),
    ],
)
def test_read_questions_unusable_row_is_named(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(write_questions(tmp_path, *rows), None)


def test_mean_weighs_questions_equally_for_unequal_sample_counts() -> None:
    """Ratings 9 (three samples) and 3 (one greedy answer) average to 6, and outcomes 1 and 0 to 0.5."""
    rows = [{"id": "hot", "turn": 0, "rating": 9.0, "outcome": 1.0}] * 3
    rows += [{"id": "cold", "turn": 0, "rating": 3.0, "outcome": 0.0}]
    frame = pd.DataFrame(rows)
    assert _mean(frame, "rating", OPTIONS).estimate == 6
    assert _mean(frame, "outcome", OPTIONS).estimate == 0.5


@pytest.mark.parametrize("which", ["questions", "references"])
def test_fingerprint_file_changed_since_check_is_rejected(which: str, tmp_path: Path) -> None:
    """The file is read at the job's start and hashed hours later, when its content may have changed."""
    files = {"questions": write_questions(tmp_path, *ROWS), "references": str(tmp_path / "references.jsonl")}
    answers = [{"question_id": i, "choices": [{"turns": ["a", "b"]}]} for i in (1, 2)]
    Path(files["references"]).write_text("\n".join(map(json.dumps, answers)))
    mt_bench = benchmark(FakeJudge(grade_by_turn), **files)
    mt_bench.check(None)
    before = mt_bench.fingerprint()
    assert before == mt_bench.fingerprint()
    file = Path(files[which])
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"the benchmark's file=\S+ has changed while this job was reading it"):
        mt_bench.fingerprint()
    mt_bench.check(None)  # the next job checks the file again
    assert mt_bench.fingerprint() != before


def test_check_references_without_questions_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^references=\S+ .*questions=FILE"):
        benchmark(FakeJudge(grade_by_turn), references=str(tmp_path)).check(None)
