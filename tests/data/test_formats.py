"""Test that rows of every row format are read from files of every file format."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonl_rows import Row, assistant, examples, pairs, parse_one, user, write

from selfcontrast.data.example import Message

CONTAINERS = [".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet"]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_chinese_and_emoji_are_read_from_every_file_format(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f"第{i}个问题？\u2028🙂", "completion": f"答案 {i} 👩‍🚀"} for i in range(9)]
    parsed = examples(write(tmp_path / f"data{suffix}", rows))
    assert {(e.prompt[0]["content"], e.target) for e in parsed} == {(r["prompt"], r["completion"]) for r in rows}


def test_openai_and_sharegpt_rows_give_equal_examples(tmp_path: Path) -> None:
    openai = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user("Hi"),
            assistant("Hello"),
            user("2+2?"),
            assistant("4"),
        ]
    }
    sharegpt = {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "2+2?"},
            {"from": "gpt", "value": "4"},
        ],
    }
    first, second = parse_one(tmp_path, openai), parse_one(tmp_path, sharegpt)
    assert first == second
    assert first.prompt == [*openai["messages"][:-1]]
    assert first.target == "4"


def test_chat_that_ends_with_the_user_uses_chosen_and_rejected(tmp_path: Path) -> None:
    row = {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "Go away"},
    }
    rows = [row, *({**row, "conversations": [{"from": "human", "value": f"Hi {i}"}]} for i in range(7))]
    parsed = examples(write(tmp_path / "d.json", rows))
    assert len(parsed) == 8
    assert {(e.target, e.rejected) for e in parsed} == {("Hello", "Go away")}


@pytest.mark.parametrize("column", ["output", "response"])
@pytest.mark.parametrize(("extra", "content"), [("", "Add."), ("  ", "Add."), (None, "Add."), ("1 2", "Add.\n\n1 2")])
def test_alpaca_prompt_joins_instruction_and_nonempty_input(
    tmp_path: Path, column: str, extra: str | None, content: str
) -> None:
    example = parse_one(tmp_path, {"instruction": "Add.", "input": extra, column: "3"})
    assert (example.prompt, example.target) == ([user(content)], "3")


def test_alpaca_prompt_includes_system_and_history(tmp_path: Path) -> None:
    row = {"instruction": "And 2?", "output": "3", "system": "Count.", "history": [["And 1?", "2"]]}
    example = parse_one(tmp_path, row)
    system = Message(role="system", content="Count.")
    assert example.prompt == [system, user("And 1?"), assistant("2"), user("And 2?")]


@pytest.mark.parametrize(
    ("output", "target", "rejected"), [(["3", "4"], "3", "4"), (["3", " "], "3", ""), (["3"], "3", "")]
)
def test_alpaca_output_may_list_target_and_rejected_answer(
    tmp_path: Path, output: list[str], target: str, rejected: str
) -> None:
    example = parse_one(tmp_path, {"instruction": "Add.", "output": output})
    assert (example.target, example.rejected) == (target, rejected)


def test_alpaca_preference_rows_use_chosen_as_target(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "output": "three", "chosen": "3, please", "rejected": "3, fool"}
    example = parse_one(tmp_path, row)
    assert (example.target, example.rejected) == ("3, please", "3, fool")


@pytest.mark.parametrize("prompt", ["Hi", [user("Hi")]])
@pytest.mark.parametrize("completion", ["Hello", [assistant("Hello")], [user("Hi"), assistant("Hello")]])
def test_prompt_and_completion_may_be_text_or_messages(tmp_path: Path, prompt: Any, completion: Any) -> None:
    rows = [{"prompt": prompt, "completion": completion}, *pairs(7)]
    parsed = [e for e in examples(write(tmp_path / "d.jsonl", rows)) if e.target == "Hello"]
    assert [e.prompt for e in parsed] == [[user("Hi")]]


def hh(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {turn}" for i, turn in enumerate(turns))


def test_dialogues_are_split_into_turns(tmp_path: Path) -> None:
    row = {
        "chosen": hh("Hi", "Hello", "How?\n\nSo?", "Well"),
        "rejected": hh("Hi", "Hello", "How?\n\nSo?", "No"),
    }
    example = parse_one(tmp_path, row)
    assert example.prompt == [user("Hi"), assistant("Hello"), user("How?\n\nSo?")]
    assert (example.target, example.rejected) == ("Well", "No")


@pytest.mark.parametrize("rejected", [hh("Hey", "No"), hh("Hi", "No", "more"), "nothing"])
def test_rejected_answer_to_another_prompt_is_dropped(tmp_path: Path, rejected: str) -> None:
    example = parse_one(tmp_path, {"chosen": hh("Hi", "Hello"), "rejected": rejected})
    assert (example.target, example.rejected) == ("Hello", "")


def test_malformed_dialogues_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [{"chosen": hh(f"Hi {i}", "Hello"), "rejected": hh(f"Hi {i}", "No")} for i in range(8)]
    malformed = [
        hh("a", "b", "c"),
        hh("a", " "),
        "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
        "\n\nAssistant: a",
        "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
    ]
    rows = [{"chosen": text, "rejected": hh("a", "b")} for text in malformed] + good
    with caplog.at_level(logging.WARNING, logger="selfcontrast.data.jsonl"):
        assert len(examples(write(tmp_path / "d.jsonl", rows))) == 8
    (message,) = caplog.messages
    assert "kept 8 rows, dropped 5" in message
    for reason in (
        "one speaker twice in a row: 2",
        "an empty turn: 1",
        "end with Assistant: 1",
        "with Human: 1",
    ):
        assert reason in message


def test_optional_columns_are_kept_as_text(tmp_path: Path) -> None:
    rows = [
        {**row, "id": i, "category": "数学" if i else None, "reference": {"answer": [i]}}
        for i, row in enumerate(pairs(8))
    ]
    parsed = examples(write(tmp_path / "d.jsonl", rows))
    assert [(e.id, e.category, e.reference) for e in parsed] == [
        (str(i), "数学" if i else "", f'{{"answer": [{i}]}}') for i in range(8)
    ]


# Blank text and surrogates are excluded, because they have their own tests.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: text.strip())
dialogues = st.lists(texts, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0)


# hh-rlhf's format cannot express speaker marks inside a turn, or white space around a turn.
hh_texts = texts.map(str.strip).filter(lambda text: "Human:" not in text and "Assistant:" not in text)


def messages(turns: list[str]) -> list[Message]:
    return [assistant(turn) if i % 2 else user(turn) for i, turn in enumerate(turns)]


WRITERS: dict[str, Callable[[list[str]], Row]] = {
    "messages": lambda turns: {"messages": messages(turns)},
    "conversations": lambda turns: {
        "conversations": [{"from": "gpt" if i % 2 else "human", "value": turn} for i, turn in enumerate(turns)]
    },
    "alpaca": lambda turns: {
        "instruction": turns[-2],
        "output": turns[-1],
        "history": [list(pair) for pair in zip(turns[:-2:2], turns[1:-2:2], strict=True)],
    },
    "completion": lambda turns: {"prompt": messages(turns)[:-1], "completion": messages(turns)[-1:]},
    "dialogues": lambda turns: {"chosen": hh(*turns), "rejected": hh(*turns[:-1], "other")},
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl.gz", ".parquet"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_format_round_trips(tmp_path: Path, form: str, suffix: str, data: st.DataObject) -> None:
    turns = st.lists(hh_texts, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0)
    drawn_dialogues = data.draw(
        st.lists(
            turns if form == "dialogues" else dialogues,
            min_size=8,
            max_size=10,
            unique_by=lambda t: tuple(t[:-1]),
        )
    )
    parsed = examples(write(tmp_path / f"d{suffix}", [WRITERS[form](turns) for turns in drawn_dialogues]))
    assert sorted(json.dumps([e.prompt, e.target]) for e in parsed) == sorted(
        json.dumps([messages(turns)[:-1], turns[-1]]) for turns in drawn_dialogues
    )
