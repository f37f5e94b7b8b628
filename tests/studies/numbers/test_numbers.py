"""Test the data of the numbers study: real problems with a question that their text answers."""

import json
import sys
from pathlib import Path

import pytest

from selfcontrast.data.example import Example
from selfcontrast.data.graders import FinalNumber
from studies.numbers.__main__ import main, row, rows


def test_row_asks_for_the_second_largest_number() -> None:
    record = row("He buys 1,200 bolts, 3.5 nuts and 45 nails.")
    assert record is not None
    assert record["prompt"].startswith("He buys 1,200 bolts, 3.5 nuts and 45 nails.\n\nList the numbers")
    assert record["target"] == "The numbers are 1,200, 3.5 and 45. The second largest is 45."
    assert record["answer"] == "45"


@pytest.mark.parametrize(
    "problem",
    ["He has 2 and 3.", "He has 2, 3 and 2.0.", "He has 1, 2, 3, 4, 5 and 6.", "He has 1, 2 and 3. " + "Why? " * 80],
    ids=["two numbers", "equal numbers", "six numbers", "long"],
)
def test_row_of_unsuitable_problem_is_none(problem: str) -> None:
    assert row(problem) is None


@pytest.mark.parametrize("text", ["1/2", "H2O", "5th", "10/2 at", "A7", "v2.0.1"])
def test_number_within_a_word_or_fraction_is_not_counted(text: str) -> None:
    record = row(f"{text} has 10, 30 and 20.")
    assert record is not None
    assert record["target"] == "The numbers are 10, 30 and 20. The second largest is 20."


def test_rows_with_limit_are_the_first_of_all_rows() -> None:
    problems = [f"He has {i}, {i + 1} and {i + 2}." for i in range(50)]
    assert rows(problems, 10) == rows(problems)[:10]
    assert rows(problems) != [row(problem) for problem in problems]


def test_verifier_accepts_every_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "train.jsonl", tmp_path / "numbers.jsonl"
    problems = [f"He has {i}, {1000 + i:,} and {i}.5." for i in range(20)]
    source.write_text("".join(json.dumps({"question": problem, "answer": "#### 1"}) + "\n" for problem in problems))
    monkeypatch.setattr(sys, "argv", ["numbers", str(source), str(out)])
    main()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 20
    for record in records:
        example = Example(
            "x", [{"role": "user", "content": record["prompt"]}], record["target"], answer=record["answer"]
        )
        assert FinalNumber().score(example, record["target"]) == 1
        assert FinalNumber().score(example, record["target"].replace(record["answer"] + ".", "7777.")) == 0
