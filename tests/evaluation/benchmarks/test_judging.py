"""Probes and calibration of judges whose faults are known."""

import json
from pathlib import Path
from typing import Any

import pytest

from measuring import Telling, answered, subject
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import Options
from selfcontrast.evaluation.benchmarks.judging import Calibration, Probes, read_gold
from selfcontrast.evaluation.judges import Case, Judgment
from tiny import example

OPTIONS = Options(confidence=0.95, n_bootstrap=200, seed=0)
EXAMPLES = [example(name, f"what is {name}?", f"target {name}", rejected=f"no {name}") for name in "abcd"]


def longer(case: Case) -> Judgment:
    first, second = (len(own[-1]) for own in case.answers)
    return Judgment("ok", 0.5 + 0.5 * ((first > second) - (second > first)))


def right(case: Case) -> Judgment:
    first, second = (own[-1] == case.example.target for own in case.answers)
    return Judgment("ok", 0.5 + 0.5 * (first - second))


def first(case: Case) -> Judgment:
    return Judgment("ok", 1.0)


def calibration(gold: str | None, judge: Any) -> Calibration:
    return Calibration(gold=gold, limit=None, min_coverage=1.0, judge=Telling(judge))


def run(benchmark: Any, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    facts = benchmark.run(folder, subject(EXAMPLES, answered(folder / "scores", {("a", 0): ["x"]})))
    lines = benchmark.lines({"SFT": folder, "Self-Contrast": folder}, OPTIONS)
    assert {line.system for line in lines} == {"judge"}
    return facts, {line.what: line.value.estimate for line in lines}


@pytest.mark.parametrize(
    ("judge", "failed", "shares"),
    [
        (right, [], [1, 1, 1, 1]),
        (longer, ["target twice", "constant"], [1, 0, 0, 1]),
        (first, ["target", "target twice", "constant", "empty"], [0, 0, 0, 0]),
    ],
)
def test_a_judge_that_ranks_probes_otherwise_is_reported(
    judge: Any, failed: list[str], shares: list[float], tmp_path: Path
) -> None:
    """A judge of place says one thing in either order: its mean is a tie everywhere, and it is right nowhere."""
    facts, lines = run(
        Probes(constant="I cannot say anything of it.", limit=None, min_coverage=1.0, judge=Telling(judge)), tmp_path
    )
    assert facts["failed_probes"] == failed
    assert facts["judgments"] == 4 * 4 * 2
    assert list(lines.values()) == shares


def test_calibration_on_the_datas_own_pairs(tmp_path: Path) -> None:
    """A judge of place is right half of the time, flips always, and prefers the first always."""
    _, lines = run(calibration(None, first), tmp_path)
    assert lines["agrees with gold"] == 0.5
    assert lines["verdicts that flip with the order"] == 1
    assert lines["first position's share"] == 1
    assert lines["leans to the longer answer, more than gold"] == -0.5  # all targets are longer than what was rejected


def test_calibration_on_a_file(tmp_path: Path) -> None:
    """Of three gold verdicts a judge of length meets the first, misses the second, and half misses a tie."""
    rows = [("q", "long answer", "short", 1), ("q", "long answer", "short", 2), ("r", "long answer", "short", 1.5)]
    names = ("instruction", "output_1", "output_2", "preference")
    file = tmp_path / "gold.json"
    file.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
    assert [value for _, value in read_gold(str(file))] == [1, 0, 0.5]
    _, lines = run(calibration(str(file), longer), tmp_path)
    assert lines["agrees with gold"] == pytest.approx(1.5 / 3)
    assert lines["leans to the longer answer, more than gold"] == pytest.approx((0 + 1 + 0.5) / 3)


def test_a_row_that_is_no_pair_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gold.jsonl"
    file.write_text(json.dumps({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 3}))
    with pytest.raises(UserError, match=r"gold\.jsonl, .*preference: 1, 2 or 1\.5"):
        read_gold(str(file))
