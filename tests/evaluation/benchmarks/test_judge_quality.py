"""Test probes and calibration with judges whose faults are known."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark_cases import FakeJudge, subject, write_answers
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import Options
from selfcontrast.evaluation.benchmarks.judge_quality import Calibration, Probes, read_gold
from selfcontrast.evaluation.judges import Case, Judgment
from tiny import example

OPTIONS = Options(confidence=0.95, n_bootstrap=200, seed=0)
EXAMPLES = [example(name, f"what is {name}?", f"target {name}", rejected=f"no {name}") for name in "abcd"]


def prefer_longer(case: Case) -> Judgment:
    first, second = (len(answers[-1]) for answers in case.answers)
    return Judgment("ok", 0.5 + 0.5 * ((first > second) - (second > first)))


def prefer_target(case: Case) -> Judgment:
    first, second = (answers[-1] == case.example.target for answers in case.answers)
    return Judgment("ok", 0.5 + 0.5 * (first - second))


def prefer_first(case: Case) -> Judgment:
    return Judgment("ok", 1.0)


def calibration(gold: str | None, judge: Any) -> Calibration:
    return Calibration(gold=gold, limit=None, min_coverage=1.0, judge=FakeJudge(judge))


def run(benchmark: Any, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    summary = benchmark.run(folder, subject(EXAMPLES, write_answers(folder / "scores", {("a", 0): ["x"]})))
    lines = benchmark.lines({"SFT": folder, "Self-Contrast": folder}, OPTIONS)
    assert {line.system for line in lines} == {"judge"}
    return summary, {line.what: line.value.estimate for line in lines}


@pytest.mark.parametrize(
    ("judge", "failed", "correct"),
    [
        (prefer_target, [], [1, 1, 1, 1]),
        (prefer_longer, ["target twice", "constant"], [1, 0, 0, 1]),
        (prefer_first, ["target", "target twice", "constant", "empty"], [0, 0, 0, 0]),
    ],
)
def test_probes_that_the_judge_gets_wrong_are_named(
    judge: Any, failed: list[str], correct: list[float], tmp_path: Path
) -> None:
    """For a judge that always prefers the first answer, each pair's mean is a tie, so the judge is never right."""
    summary, lines = run(
        Probes(constant="I cannot say anything of it.", limit=None, min_coverage=1.0, judge=FakeJudge(judge)),
        tmp_path,
    )
    assert summary["failed_probes"] == failed
    assert summary["judgments"] == 4 * 4 * 2
    assert list(lines.values()) == correct


def test_calibration_with_rejected_answers_finds_position_bias(tmp_path: Path) -> None:
    _, lines = run(calibration(None, prefer_first), tmp_path)
    assert lines["agrees with gold"] == 0.5
    assert lines["verdicts that flip with the order"] == 1
    assert lines["first position's share"] == 1
    assert lines["leans to the longer answer, more than gold"] == -0.5  # each target is longer than its rejected answer


def test_calibration_with_a_gold_file_finds_length_bias(tmp_path: Path) -> None:
    """The judge agrees with the first gold verdict and not with the second. The third, a tie, counts as half."""
    rows = [("q", "long answer", "short", 1), ("q", "long answer", "short", 2), ("r", "long answer", "short", 1.5)]
    names = ("instruction", "output_1", "output_2", "preference")
    file = tmp_path / "gold.json"
    file.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
    assert [value for _, value in read_gold(str(file))] == [1, 0, 0.5]
    _, lines = run(calibration(str(file), prefer_longer), tmp_path)
    assert lines["agrees with gold"] == pytest.approx(1.5 / 3)
    assert lines["leans to the longer answer, more than gold"] == pytest.approx((0 + 1 + 0.5) / 3)


def test_read_gold_unusable_row_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gold.jsonl"
    file.write_text(json.dumps({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 3}))
    with pytest.raises(UserError, match=r"gold\.jsonl, .*preference: 1, 2 or 1\.5"):
        read_gold(str(file))
