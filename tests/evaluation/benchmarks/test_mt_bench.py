"""Dialogues whose answers are graded."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from judging import Lengths, around
from measuring import Telling, answered, asked, subject
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Options
from selfcontrast.evaluation.benchmarks.mt_bench import OURS, MTBench, _mean
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


def written(folder: Path, *rows: dict[str, Any]) -> str:
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def longer(case: Case) -> Judgment:
    first, second = (len(own[-1]) for own in case.answers)
    return Judgment("ok", 0.5 + 0.5 * ((first > second) - (second > first)))


def by_turn(case: Case) -> Judgment:
    return Judgment("ok", 3.0 + case.turn + case.sample)


def test_every_turn_of_every_sample_is_graded(tmp_path: Path) -> None:
    """Greedy categories give one dialogue, the others as many as asked for; references go to guided ones alone."""
    judge = Telling(by_turn)
    of = benchmark(judge, questions=written(tmp_path, *ROWS))
    facts = of.run(tmp_path, asked(of, [], tmp_path / "answers", policy_folder(tmp_path / "policy")))
    assert sorted((c.example.id, c.sample, c.turn, c.references) for c in judge.asked) == [
        ("1", 0, 0, ("one",)),
        ("1", 0, 1, ("one", "two")),
        *(("2", sample, turn, ()) for sample in range(3) for turn in range(2)),
    ]
    assert all(len(c.answers[0]) == c.turn + 1 for c in judge.asked)
    assert (facts["questions"], facts["judgments"], facts["guided"]) == (2, 8, 2)


def test_its_own_questions_may_be_training_prompts(tmp_path: Path) -> None:
    own = benchmark(Telling(by_turn), questions=written(tmp_path, *ROWS))
    assert own.own_prompts() == {"1": "cat\ndog", "2": "the cat\nmat"}
    assert benchmark(Telling(by_turn), questions=written(tmp_path, *ROWS), limit=1).own_prompts() == {"1": "cat\ndog"}
    assert benchmark(Telling(by_turn)).own_prompts() == {}  # the held-out prompts are checked whatever measures them


def test_means_by_turn_and_category_and_the_difference_from_sft(tmp_path: Path) -> None:
    """Of one more point for all, but for a judgment that the policy lacks: it is left out of both."""
    of = benchmark(Telling(by_turn))
    grades = {("a", 0): 2.0, ("a", 1): 4.0, ("b", 0): 6.0, ("b", 1): 9.0}
    for name, more in (("SFT", 0.0), ("Self-Contrast", 1.0)):
        rows = [
            {"id": i, "category": f"of {i}", "sample": 0, "turn": turn, "status": "ok", "rating": grade + more}
            for (i, turn), grade in grades.items()
        ]
        if more:
            rows[-1] |= {"status": "truncated", "rating": None}
        (tmp_path / name).mkdir()
        pd.DataFrame(rows).astype({"rating": "float64"}).to_parquet(tmp_path / name / JUDGMENTS)
    lines = of.lines({name: tmp_path / name for name in ("SFT", "Self-Contrast")}, OPTIONS)
    found = {(line.system, line.what): line.value.estimate for line in lines}
    assert found == {
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


def test_answers_are_compared_with_sfts_in_both_orders_turn_by_turn(tmp_path: Path) -> None:
    """A judge of length, over two questions of two turns: the policy's is the longer but for the math's second turn.

    Of 4 comparisons it wins 2, ties 1 and loses 1: 2.5 / 4. The reference stands beside the guided category alone.
    """
    judge = Telling(longer)
    of = benchmark(judge, grading="pairwise", questions=written(tmp_path, *ROWS))
    own = answered(tmp_path / "own", {("1", 0): ["long", "x"], ("2", 0): ["long", "same"]})
    base = answered(tmp_path / "base", {("1", 0): ["a", "long"], ("2", 0): ["a", "same"]})
    assert of.relative
    facts = of.run(tmp_path, subject([], own, label="Self-Contrast", baseline=base))
    assert (facts["judgments"], facts["questions"], facts["guided"]) == (8, 2, 2)
    assert [(c.turn, c.answers, c.references, c.swapped) for c in judge.asked[2:4]] == [
        (1, (("long", "x"), ("a", "long")), ("one", "two"), False),
        (1, (("a", "long"), ("long", "x")), ("one", "two"), True),
    ]
    found = {line.what: line.value.estimate for line in of.lines({"Self-Contrast": tmp_path}, OPTIONS)}
    assert found["win rate over SFT"] == 2.5 / 4
    assert found["verdicts that flip with the order"] == 0
    assert (found["turn 1"], found["turn 2"]) == (1, 0.25)
    assert (found["category math"], found["category writing"]) == (0.5, 0.75)
    with pytest.raises(UserError, match="grading=both: one of single, pairwise"):
        benchmark(judge, grading="both")


def test_another_judge_or_grading_asks_for_no_answer_again(tmp_path: Path) -> None:
    """Answers are kept under what was asked, and how; the file's place and the judging are no part of it."""
    file = written(tmp_path, *ROWS)
    key = benchmark(Telling(by_turn), questions=file).asking([]).fingerprint()
    (tmp_path / "moved.jsonl").write_text((tmp_path / "questions.jsonl").read_text())
    same = benchmark(Telling(longer), questions=str(tmp_path / "moved.jsonl"), grading="pairwise", guided=[])
    assert same.asking([]).fingerprint() == key
    for changes in ({"limit": 1}, {"temperature": 0.5}, {"samples": 2}, {"seed": 1}, {"max_new_tokens": 5}):
        assert benchmark(Telling(by_turn), questions=file, **changes).asking([]).fingerprint() != key


def test_the_datas_own_dialogues_under_its_verifier(tmp_path: Path) -> None:
    examples = [example("s", "cat?", "a cat"), example("d", "dog?", "a dog", turns=["the dog", "cat"])]
    of = benchmark(VerifierJudge())
    policy = policy_folder(tmp_path / "policy")
    near = around(tmp_path, Lengths())
    assert of.left_out(examples, Lengths()) is None
    found = of.run(tmp_path, asked(of, examples, tmp_path / "answers", policy, surroundings=near))
    assert found["questions"] == 1
    for row in pd.read_parquet(tmp_path / JUDGMENTS).to_dict("records"):
        assert row["rating"] == pytest.approx(1 + 9 * min(1, len(row["answer"]) / 10))


@pytest.mark.parametrize(
    "judge",
    [
        VerifierJudge(),
        Panel({"verifier": VerifierJudge(), "other": Telling(longer)}),
        Panel({"panel": Panel({"other": Telling(longer), "verifier": VerifierJudge()}), "another": Telling(by_turn)}),
    ],
    ids=["alone", "in a panel", "in a panel of a panel"],
)
def test_where_it_does_not_apply_it_says_why(judge: Any) -> None:
    of = benchmark(judge)
    assert of.left_out([example("s", "cat?", "a cat")], Lengths()) == "the data has no dialogues to play"
    assert of.left_out([], None) == "there is no verifier"
    of.check(None)
    with pytest.raises(UserError, match="grades the data's own prompts only"):
        benchmark(judge, questions="ours").check(Lengths())


def test_our_own_questions() -> None:
    benchmark(Telling(by_turn), questions="ours").check(None)
    read = read_questions(str(OURS), None)
    categories = [e.category for e in read.examples]
    assert {c: categories.count(c) for c in categories} == dict.fromkeys(
        ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"], 10
    )
    assert all(len(e.turns) == 2 for e in read.examples)
    assert {e.id for e in read.examples if e.category in ("math", "reasoning", "coding")} <= set(read.references)


def test_fastchats_files() -> None:
    read = read_questions(
        str(shared_data("mt_bench", "question.jsonl")), str(shared_data("mt_bench", "reference_gpt-4.jsonl"))
    )
    assert (len(read.examples), len(read.references)) == (80, 30)
    assert read.examples[0].id == "81"
    assert read.references["101"][0].startswith("If you have just overtaken the second person")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1, "turns": "cat"}], "'turns' must be a list"),
        ([{"question_id": 1, "turns": []}], "'turns' must be a list"),
        ([ROWS[0], ROWS[0]], "question 1 stands twice"),
        ([{**ROWS[0], "reference": ["one"]}], "a reference for each of its turns"),
    ],
)
def test_questions_that_cannot_be(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(written(tmp_path, *rows), None)


def test_questions_weigh_alike_however_many_samples_they_have() -> None:
    """Of two questions with ratings 9 (three samples) and 3 (one, greedy) the mean is 6; of wins 1 and 0 a half."""
    rows = [{"id": "hot", "turn": 0, "rating": 9.0, "outcome": 1.0}] * 3
    rows += [{"id": "cold", "turn": 0, "rating": 3.0, "outcome": 0.0}]
    frame = pd.DataFrame(rows)
    assert _mean(frame, "rating", OPTIONS).estimate == 6
    assert _mean(frame, "outcome", OPTIONS).estimate == 0.5


@pytest.mark.parametrize("which", ["questions", "references"])
def test_file_that_changes_between_the_check_and_its_key_is_refused(which: str, tmp_path: Path) -> None:
    """It was read when the job began, and hashed when the benchmark's turn came: hours later, and another file."""
    files = {"questions": written(tmp_path, *ROWS), "references": str(tmp_path / "references.jsonl")}
    answers = [{"question_id": i, "choices": [{"turns": ["a", "b"]}]} for i in (1, 2)]
    Path(files["references"]).write_text("\n".join(map(json.dumps, answers)))
    of = benchmark(Telling(by_turn), **files)
    of.check(None)
    before = of.fingerprint()
    assert before == of.fingerprint()
    file = Path(files[which])
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"the benchmark's file=\S+ has changed while this job was reading it"):
        of.fingerprint()
    of.check(None)  # the next job's
    assert of.fingerprint() != before


def test_references_without_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^references=\S+: of which questions\?"):
        benchmark(Telling(by_turn), references=str(tmp_path)).check(None)
