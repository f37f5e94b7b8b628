import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfcontrast.data.example import Example, Message
from selfcontrast.data.jsonl import Jsonl, read_rows, split_by_prompt
from selfcontrast.errors import UserError

SHARED = Path(__file__).parents[2] / "../shared/data"
Row = dict[str, Any]


def source(path: Path, *, validation: float = 0.05, test: float = 0.1, limit: int | None = None) -> Jsonl:
    return Jsonl(str(path), validation, test, limit, None)


def examples(path: Path, **settings: Any) -> list[Example]:
    """All splits' examples, sorted by id."""
    loaded = source(path, **settings).load()
    return sorted((example for split in loaded.values() for example in split), key=lambda e: e.id)


def write(path: Path, rows: list[Any]) -> Path:
    """Write rows in the container that the suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if ".jsonl" in path.suffixes:
        # With a blank line at the end, as editors leave it.
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n"
    else:
        content = json.dumps(rows, ensure_ascii=False, indent=1)
    data = content.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


def pairs(count: int) -> list[Row]:
    return [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(count)]


def parse_one(tmp_path: Path, row: Row) -> Example:
    """The example of one row, in a file padded with seven others of the same format."""
    rows = [row] + [{**row, **_vary(row, i)} for i in range(7)]
    found = [e for e in examples(write(tmp_path / "one.jsonl", rows)) if "padding" not in e.prompt[-1]["content"]]
    assert len(found) == 1
    return found[0]


def _vary(row: Row, i: int) -> Row:
    text = f"padding {i}"
    chat = {"messages": [user(text), assistant("a")], "conversations": [user(text), assistant("a")]}
    plain = {"instruction": text, "prompt": text}
    dialogue = {"chosen": f"\n\nHuman: {text}\n\nAssistant: a", "rejected": "b"}
    options = chat if chat.keys() & row.keys() else plain if plain.keys() & row.keys() else dialogue
    return {column: value for column, value in options.items() if column in row}


# --- the formats ---

CONTAINERS = [".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet"]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_chinese_and_emoji_survive_every_container(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f"第{i}个问题？\u2028🙂", "completion": f"答案 {i} 👩‍🚀"} for i in range(9)]
    found = examples(write(tmp_path / f"data{suffix}", rows))
    assert {(e.prompt[0]["content"], e.target) for e in found} == {(r["prompt"], r["completion"]) for r in rows}


def test_chat_rows_of_both_dialects_agree(tmp_path: Path) -> None:
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


def test_a_chat_that_ends_with_the_user_takes_chosen_and_rejected(tmp_path: Path) -> None:
    row = {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "Go away"},
    }
    rows = [row, *({**row, "conversations": [{"from": "human", "value": f"Hi {i}"}]} for i in range(7))]
    found = examples(write(tmp_path / "d.json", rows))
    assert len(found) == 8
    assert {(e.target, e.rejected) for e in found} == {("Hello", "Go away")}


@pytest.mark.parametrize("column", ["output", "response"])
@pytest.mark.parametrize(("extra", "content"), [("", "Add."), ("  ", "Add."), (None, "Add."), ("1 2", "Add.\n\n1 2")])
def test_alpaca_joins_a_filled_input(tmp_path: Path, column: str, extra: str | None, content: str) -> None:
    example = parse_one(tmp_path, {"instruction": "Add.", "input": extra, column: "3"})
    assert (example.prompt, example.target) == ([user(content)], "3")


def test_alpaca_takes_system_and_history(tmp_path: Path) -> None:
    row = {"instruction": "And 2?", "output": "3", "system": "Count.", "history": [["And 1?", "2"]]}
    example = parse_one(tmp_path, row)
    system = Message(role="system", content="Count.")
    assert example.prompt == [system, user("And 1?"), assistant("2"), user("And 2?")]


@pytest.mark.parametrize(
    ("output", "target", "rejected"), [(["3", "4"], "3", "4"), (["3", " "], "3", ""), (["3"], "3", "")]
)
def test_alpaca_output_may_be_chosen_and_rejected(
    tmp_path: Path, output: list[str], target: str, rejected: str
) -> None:
    example = parse_one(tmp_path, {"instruction": "Add.", "output": output})
    assert (example.target, example.rejected) == (target, rejected)


def test_alpaca_preference_rows_answer_with_chosen(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "output": "three", "chosen": "3, please", "rejected": "3, fool"}
    example = parse_one(tmp_path, row)
    assert (example.target, example.rejected) == ("3, please", "3, fool")


@pytest.mark.parametrize("prompt", ["Hi", [user("Hi")]])
@pytest.mark.parametrize("completion", ["Hello", [assistant("Hello")], [user("Hi"), assistant("Hello")]])
def test_prompt_and_completion_as_text_or_messages(tmp_path: Path, prompt: Any, completion: Any) -> None:
    rows = [{"prompt": prompt, "completion": completion}, *pairs(7)]
    found = [e for e in examples(write(tmp_path / "d.jsonl", rows)) if e.target == "Hello"]
    assert [e.prompt for e in found] == [[user("Hi")]]


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
def test_rejected_of_another_prompt_is_left_out(tmp_path: Path, rejected: str) -> None:
    example = parse_one(tmp_path, {"chosen": hh("Hi", "Hello"), "rejected": rejected})
    assert (example.target, example.rejected) == ("Hello", "")


def test_odd_dialogues_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [{"chosen": hh(f"Hi {i}", "Hello"), "rejected": hh(f"Hi {i}", "No")} for i in range(8)]
    odd = [
        hh("a", "b", "c"),
        hh("a", " "),
        "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
        "\n\nAssistant: a",
        "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
    ]
    rows = [{"chosen": text, "rejected": hh("a", "b")} for text in odd] + good
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


def test_optional_columns_are_carried_over_as_text(tmp_path: Path) -> None:
    rows = [
        {**row, "id": i, "category": "数学" if i else None, "reference": {"answer": [i]}}
        for i, row in enumerate(pairs(8))
    ]
    found = examples(write(tmp_path / "d.jsonl", rows))
    assert [(e.id, e.category, e.reference) for e in found] == [
        (str(i), "数学" if i else "", f'{{"answer": [{i}]}}') for i in range(8)
    ]


# Blank text is an error, and surrogates are not text; both have their own tests.
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: text.strip())
dialogues = st.lists(words, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0)
# What hh-rlhf's own form can express: no speaker marks inside a turn, no blanks around it.
plain = words.map(str.strip).filter(lambda text: "Human:" not in text and "Assistant:" not in text)


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
def test_round_trip(tmp_path: Path, form: str, suffix: str, data: st.DataObject) -> None:
    turns = st.lists(plain, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0)
    drawn = data.draw(
        st.lists(
            turns if form == "dialogues" else dialogues,
            min_size=8,
            max_size=10,
            unique_by=lambda t: tuple(t[:-1]),
        )
    )
    found = examples(write(tmp_path / f"d{suffix}", [WRITERS[form](turns) for turns in drawn]))
    assert sorted(json.dumps([e.prompt, e.target]) for e in found) == sorted(
        json.dumps([messages(turns)[:-1], turns[-1]]) for turns in drawn
    )


# --- splitting ---


def test_a_prompt_lies_in_one_split_and_none_is_lost(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i % 60}", "completion": f"a{i}"} for i in range(240)]
    loaded = source(write(tmp_path / "d.jsonl", rows), validation=0.2, test=0.2).load()
    prompts = {name: {e.prompt[0]["content"] for e in split} for name, split in loaded.items()}
    assert sum(len(split) for split in loaded.values()) == 240
    assert sum(len(split) for split in prompts.values()) == 60
    assert all(prompts.values())
    for split in loaded.values():  # in the file's order
        order = [int(e.target[1:]) for e in split]
        assert order == sorted(order)


def test_shares_are_met(tmp_path: Path) -> None:
    loaded = source(write(tmp_path / "d.jsonl", pairs(4000)), validation=0.1, test=0.3).load()
    # Standard deviations of the shares: 19 and 29 rows.
    assert abs(len(loaded["validation"]) - 400) < 80
    assert abs(len(loaded["test"]) - 1200) < 120


def test_rows_added_later_move_no_prompt(tmp_path: Path) -> None:
    few = source(write(tmp_path / "few.jsonl", pairs(300))).load()
    many = source(write(tmp_path / "many.jsonl", pairs(600)[::-1])).load()
    for name, split in few.items():
        assert {e.id for e in split} <= {e.id for e in many[name]}


def test_the_split_is_the_same_on_every_machine(tmp_path: Path) -> None:
    loaded = source(write(tmp_path / "d.jsonl", pairs(40))).load()
    # The hashes that decide, by: printf '[{"role": "user", "content": "question 2"}]' | sha256sum
    # test, below 0x1999 (0.1): 2 00aa, 9 090e, 33 0fc0, 4 12ff; validation, below 0x2666 (0.15): 30 1c0f,
    # 6 2332; train: 8 2dde, 39 2f8b, 18 353b, ...
    numbers = {name: [int(e.target.removeprefix("answer ")) for e in split] for name, split in loaded.items()}
    assert (numbers["test"], numbers["validation"]) == ([2, 4, 9, 33], [6, 30])


@given(
    count=st.integers(3, 12),
    shares=st.sampled_from([(0.001, 0.001), (0.05, 0.1), (0.001, 0.998), (0.998, 0.001)]),
)
def test_no_split_is_empty(count: int, shares: tuple[float, float]) -> None:
    rows = [Example(id=str(i), prompt=[user(str(i))], target="a") for i in range(count)]
    split = split_by_prompt(rows, *shares)
    assert all(split.values())
    assert sum(len(part) for part in split.values()) == count


def test_exact_duplicates_are_dropped_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*pairs(9), *pairs(2), {"prompt": "question 0", "completion": "another answer"}]
    with caplog.at_level(logging.WARNING, logger="selfcontrast.data.jsonl"):
        found = examples(write(tmp_path / "d.jsonl", rows))
    assert len(found) == len({e.id for e in found}) == 10
    assert "exact duplicate: 2" in caplog.text


def test_limit_takes_the_first_usable_rows(tmp_path: Path) -> None:
    rows = [*pairs(1), *pairs(20), {"prompt": "broken"}]
    found = examples(write(tmp_path / "d.jsonl", rows), limit=10)
    assert {e.target for e in found} == {f"answer {i}" for i in range(10)}


def test_ids_do_not_depend_on_path_container_or_order(tmp_path: Path) -> None:
    first = examples(write(tmp_path / "a.jsonl", pairs(9)))
    second = examples(write(tmp_path / "b.parquet", pairs(9)[::-1]))
    assert first == second


# --- fingerprint ---


def test_fingerprint_follows_content_and_settings_but_not_the_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(8))
    base = source(path).fingerprint()
    assert source(write(tmp_path / "b.jsonl", pairs(8))).fingerprint() == base
    assert json.loads(json.dumps(base)) == base
    changed = [
        source(write(tmp_path / "c.jsonl", pairs(9))).fingerprint(),
        source(path, validation=0.1).fingerprint(),
        source(path, test=0.2).fingerprint(),
        source(path, limit=8).fingerprint(),
    ]
    assert all(other != base for other in changed)


# --- what is refused ---


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        source(path).load()
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


BAD_ROWS = {
    "a row must be an object": ["text"],
    "column 'completion' is missing": {"prompt": "q"},
    "column 'completion' is missing or null": {"prompt": "q", "completion": None},
    "'completion' must be a list of messages, not int": {"prompt": "q", "completion": 3},
    "'completion' is empty": {"prompt": "q", "completion": " \n"},
    "'completion' must be a text or one assistant message": {"prompt": "q", "completion": []},
    "(the prompt may precede it)": {"prompt": "q", "completion": [user("another q"), assistant("a")]},
    "'prompt' is empty": {"prompt": "", "completion": "a"},
    "the prompt is empty": {"prompt": [], "completion": "a"},
    "the last message before the answer must be the user's": {"prompt": [assistant("a")], "completion": "a"},
    "has the unknown role 'tool'": {"prompt": [{"role": "tool", "content": "x"}], "completion": "a"},
    "has the unknown role None": {"prompt": [{"content": "x"}], "completion": "a"},
    "message 1 of 'prompt' must be an object": {"prompt": ["x"], "completion": "a"},
    "message 1 of 'prompt' must be text, not list": {
        "prompt": [{"role": "user", "content": []}],
        "completion": "a",
    },
    "unpaired surrogate": {"prompt": "q", "completion": "\ud83d"},
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_a_malformed_row_names_file_and_line(tmp_path: Path, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, [*pairs(2), BAD_ROWS[message], *pairs(9)])))
    assert f"{path}, line 3: " in (text := refusal(path))
    assert message in text


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_arrays_and_parquet_count_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"d{suffix}", [*pairs(4), {"prompt": "q", "completion": ""}])
    assert f"{path}, row 5: 'completion' is empty" in refusal(path)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ([user("a")], "must be the assistant's"),
        ([assistant("a")], "the prompt is empty"),
        ([user("a"), assistant("b"), assistant("c")], "must be the user's"),
        ([user("a"), assistant("")], "message 2 of 'messages' is empty"),
        ([], "must be the assistant's"),
        ("text", "must be a list of messages"),
    ],
)
def test_malformed_chats(tmp_path: Path, last: Any, message: str) -> None:
    path = write(tmp_path / "d.jsonl", [{"messages": [user("q"), assistant("a")]}, {"messages": last}])
    text = refusal(path)
    assert "line 2: " in text
    assert message in text


@pytest.mark.parametrize("history", [5, "text", [["one"]], [[1, 2]]])
def test_malformed_history(tmp_path: Path, history: Any) -> None:
    path = write(tmp_path / "d.jsonl", [{"instruction": "a", "output": "b", "history": history}])
    assert "history" in refusal(path)


def test_an_id_that_two_rows_share_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{**row, "id": "same"} for row in pairs(2)])
    assert "line 2: id 'same' is taken" in refusal(path)


def test_unknown_columns_are_listed_with_the_accepted_ones(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "d.jsonl", [{"question": "q", "answer": "a"}]))
    assert "question, answer" in text
    for accepted in (
        "messages",
        "conversations",
        "instruction + output",
        "prompt + completion",
        "chosen + rejected",
    ):
        assert accepted in text


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d.jsonl", b'{"prompt": "q", "completion": "a"}\n{"prompt": ', "line 2: not valid JSON"),
        ("d.jsonl", b'{"prompt": "q", "completion": "a"}\n{"prompt": "\xff"}', "line 2: not valid UTF-8"),
        ("d.jsonl", b"\xff" * 4, "line 1: not valid UTF-8"),
        ("d.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("d.jsonl", b'{"prompt": "q", "completion": "a", "prompt": "r"}\n', "line 1: not valid JSON (the key 'prompt'"),
        ("d.json", b'[{"messages": [{"role": "user", "role": "system"}]}]', "the key 'role' stands twice"),
        ("d.json", b'[\n{"prompt": "q"\n', "line 3: not valid JSON"),
        ("d.json", b'{"prompt": "q"}', "must be one JSON array"),
        ("d.json", b'{"prompt": "q"}\n{"prompt": "q"}', "name it .jsonl"),
        ("d.json", b"[]", "fewer than 8 different prompts in 0 usable rows"),
        ("d.json", b"", "the file is empty"),
        ("d.jsonl", b"\n \n", "the file is empty"),
        ("d.jsonl.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("d.jsonl.gz", b"not gzip", "not a whole gzip file"),
        ("d.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], "not a whole gzip file"),
        ("d.parquet", b"", "not readable as Parquet"),
        ("d.parquet", b"PAR1 no", "not readable as Parquet"),
        ("d.csv", b"prompt,completion", "unknown suffix"),
        ("d.parquet.gz", b"", "unknown suffix"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert message in refusal(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.jsonl")
    assert "is a folder" in refusal(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        source(tmp_path / "none.jsonl").fingerprint()


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in pairs(8)))
    assert len(examples(path)) == 8


def test_too_few_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i % 7}", "completion": f"a{i}"} for i in range(20)]
    assert "fewer than 8 different prompts in 20 usable rows" in refusal(write(tmp_path / "d.jsonl", rows))


@pytest.mark.parametrize(
    "wrong",
    [{"validation": 0}, {"test": 0}, {"test": 0.95}, {"test": float("nan")}, {"limit": 7}, {"limit": 0}],
)
def test_settings_out_of_range(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        source(tmp_path / "d.jsonl", **wrong)


def test_the_config_builds_the_source(tmp_path: Path) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(__file__).parents[2] / "conf/data/jsonl.yaml")
    config.pop("defaults")  # the verifier, a group of its own
    assert OmegaConf.missing_keys(config) == {"path"}
    built = instantiate(config, path=str(write(tmp_path / "d.jsonl", pairs(8))))
    assert isinstance(built, Jsonl)
    assert sum(len(split) for split in built.load().values()) == 8


# --- the public files ---

PUBLIC = [  # file, usable rows, rows with a rejected response
    ("instruction_tuning/llamafactory_alpaca_en_demo.json", 999 - 14, 0),
    ("instruction_tuning/rasbt_instruction_1100.json", 1100, 0),
    ("instruction_tuning/rasbt_preference_1100.json", 1100, 1100),
    ("instruction_tuning/gpteacher_roleplay_1923.json", 1923, 0),
    ("instruction_tuning/llamafactory_dpo_en_demo.json", 300 - 5, 295),
    ("hh_rlhf/harmless-base_test.jsonl.gz", 2312 - 12, 2299),
]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data is not beside the checkout")
@pytest.mark.parametrize(("name", "rows", "rejected"), PUBLIC)
def test_public_files(name: str, rows: int, rejected: int) -> None:
    found = examples(SHARED / name)
    assert len(found) == len({e.id for e in found}) == rows
    assert sum(bool(e.rejected) for e in found) == rejected
    assert all(e.prompt[-1]["role"] == "user" and e.target.strip() for e in found)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data is not beside the checkout")
def test_a_public_file_of_another_format_is_refused_by_its_columns() -> None:
    assert "id, name, instruction, instances" in refusal(
        SHARED / "instruction_tuning/self_instruct_seed_tasks_175.jsonl"
    )


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=9) as stream:
        for _ in range(64):
            stream.write(bytes(2**20))
    with pytest.raises(UserError, match=r"data\.jsonl\.gz: unpacks to more than 200 times its size"):
        list(read_rows(str(file)))


def test_a_small_file_of_repetitions_is_read(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"prompt": "a", "completion": "' + b"b" * 10**6 + b'"}'))
    assert len(list(read_rows(str(file)))) == 1
