"""Rows without an answer: examples without target where targets are optional, and refused elsewhere."""

import logging
from pathlib import Path
from typing import Any

import pytest
from jsonl_rows import examples, source, write

from selfcontrast.data.example import Example, Message
from selfcontrast.errors import UserError

ANSWERED = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(12)]
ASKED = [Message(role="user", content="Why?")]


def bare(path: Path) -> list[Example]:
    """The examples without target, of all splits."""
    found = examples(path, targets="optional")
    assert sum(example.has_target for example in found) == len(ANSWERED)
    assert all(example.has_target == bool(example.target) for example in found)
    return [example for example in found if not example.has_target]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?"},
        {"prompt": "Why?", "completion": None},
        {"prompt": ASKED, "target": None},
        {"prompt": "Why?", "chosen": None, "rejected": "No."},
        {"instruction": "Why?"},
        {"instruction": "Why?", "input": "", "output": None},
        {"messages": ASKED},
        {"conversations": [{"from": "human", "value": "Why?"}]},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:"},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_row_without_an_answer_is_an_example_without_target(tmp_path: Path, row: Any, first: bool) -> None:
    path = write(tmp_path / "d.jsonl", [row, *ANSWERED] if first else [*ANSWERED, row])
    (found,) = bare(path)
    assert (found.prompt, found.target, found.every_rejected) == (ASKED, "", [])
    with pytest.raises(UserError, match=f"line {1 if first else 13}"):
        source(path).load()


def test_a_prompt_without_target_lies_in_the_split_that_it_would_lie_in_with_one(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(60)]
    own = source(write(tmp_path / "a.jsonl", rows), validation=0.2, test=0.2).load()
    bare = [row if i % 3 else {"prompt": row["prompt"]} for i, row in enumerate(rows)]
    other = source(write(tmp_path / "b.jsonl", bare), validation=0.2, test=0.2, targets="optional").load()
    assert {split: [e.prompt for e in own[split]] for split in own} == {
        split: [e.prompt for e in other[split]] for split in other
    }
    assert all(any(not example.has_target for example in found) for found in other.values())


def test_a_prompt_that_another_row_answers_is_not_read_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "Question 3?"}, *ANSWERED, {"prompt": "Question 4?", "completion": None}, {"prompt": "Why?"}]
    with caplog.at_level(logging.INFO):
        assert [example.prompt for example in bare(write(tmp_path / "d.jsonl", rows))] == [ASKED]
    assert any("no answer, and another row has the prompt with one: 2" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Why?", "chosen": "So."}, "column 'completion' is missing or null, but 'chosen' holds an answer"),
        ({"prompt": "Why?", "completion": None, "target": "So."}, "but 'target' holds an answer: rename it"),
        ({"prompt": "Why?", "completion": " "}, "'completion' is empty"),
        ({"messages": []}, "the prompt is empty"),
        ({"question": "Why?"}, "is missing or null"),
    ],
)
def test_other_rows_are_refused_as_before(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"line 13: .*{message}"):
        source(write(tmp_path / "d.jsonl", [*ANSWERED, row]), targets="optional").load()


def test_a_file_may_be_without_any_target(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"prompt": f"Why {i}?", "id": str(i)} for i in range(20)])
    assert {example.id for example in examples(path, targets="optional")} == {str(i) for i in range(20)}


def test_the_setting_is_in_the_key_only_where_it_is_not_the_default(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ANSWERED)
    required, optional = source(path).fingerprint(), source(path, targets="optional").fingerprint()
    assert optional == {**required, "targets": "optional"}
