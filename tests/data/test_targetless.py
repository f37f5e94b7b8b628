"""Test that rows without an answer are examples without target if targets are optional, and errors otherwise."""

import logging
from pathlib import Path
from typing import Any

import pytest
from jsonl_rows import examples, source, write

from selfcontrast.data.example import Example, Message
from selfcontrast.errors import UserError

ANSWERED = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(12)]
PROMPT = [Message(role="user", content="Why?")]


def targetless(path: Path) -> list[Example]:
    """Return the examples without target, of all splits."""
    loaded = examples(path, targets="optional")
    assert sum(example.has_target for example in loaded) == len(ANSWERED)
    assert all(example.has_target == bool(example.target) for example in loaded)
    return [example for example in loaded if not example.has_target]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?"},
        {"prompt": "Why?", "completion": None},
        {"prompt": PROMPT, "target": None},
        {"prompt": "Why?", "chosen": None, "rejected": "No."},
        {"instruction": "Why?"},
        {"instruction": "Why?", "input": "", "output": None},
        {"messages": PROMPT},
        {"conversations": [{"from": "human", "value": "Why?"}]},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:"},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_row_without_answer_is_an_example_without_target(tmp_path: Path, row: Any, first: bool) -> None:
    path = write(tmp_path / "d.jsonl", [row, *ANSWERED] if first else [*ANSWERED, row])
    (parsed,) = targetless(path)
    assert (parsed.prompt, parsed.target, parsed.all_rejected) == (PROMPT, "", [])
    with pytest.raises(UserError, match=f"line {1 if first else 13}"):
        source(path).load()


def test_split_of_a_prompt_does_not_depend_on_its_target(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(60)]
    full = source(write(tmp_path / "a.jsonl", rows), validation=0.2, test=0.2).load()
    partly_answered = [row if i % 3 else {"prompt": row["prompt"]} for i, row in enumerate(rows)]
    other = source(write(tmp_path / "b.jsonl", partly_answered), validation=0.2, test=0.2, targets="optional").load()
    assert {split: [e.prompt for e in full[split]] for split in full} == {
        split: [e.prompt for e in other[split]] for split in other
    }
    assert all(any(not example.has_target for example in part) for part in other.values())


def test_row_without_answer_is_dropped_if_another_row_answers_its_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "Question 3?"}, *ANSWERED, {"prompt": "Question 4?", "completion": None}, {"prompt": "Why?"}]
    with caplog.at_level(logging.INFO):
        assert [example.prompt for example in targetless(write(tmp_path / "d.jsonl", rows))] == [PROMPT]
    assert any("no answer, and another row answers the prompt: 2" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Why?", "chosen": "So."}, "column 'completion' is missing or null, but 'chosen' has an answer"),
        ({"prompt": "Why?", "completion": None, "target": "So."}, r"but 'target' has an answer\. Rename the column"),
        ({"prompt": "Why?", "completion": " "}, "'completion' is empty"),
        ({"messages": []}, "the prompt is empty"),
        ({"question": "Why?"}, "is missing or null"),
    ],
)
def test_malformed_rows_raise(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"line 13: .*{message}"):
        source(write(tmp_path / "d.jsonl", [*ANSWERED, row]), targets="optional").load()


def test_file_without_any_target_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"prompt": f"Why {i}?", "id": str(i)} for i in range(20)])
    assert {example.id for example in examples(path, targets="optional")} == {str(i) for i in range(20)}


def test_targets_setting_is_in_the_fingerprint_unless_default(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ANSWERED)
    required, optional = source(path).fingerprint(), source(path, targets="optional").fingerprint()
    assert optional == {**required, "targets": "optional"}
