"""Test that unusable files and rows raise errors that name the file and, for a row, its line or number."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonl_rows import assistant, examples, load_error, pairs, source, user, write

from selfcontrast.data.jsonl import read_rows
from selfcontrast.errors import UserError

FIX = re.compile(r"\. [A-Z][^.]* .*\.$")  # a second sentence, which says what to do
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
def test_malformed_row_error_names_file_and_line(tmp_path: Path, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, [*pairs(2), BAD_ROWS[message], *pairs(9)])))
    assert f"{path}, line 3: " in (text := load_error(path))
    assert message in text
    assert FIX.search(text)


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_error_in_array_or_parquet_names_the_row(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"d{suffix}", [*pairs(4), {"prompt": "q", "completion": ""}])
    assert f"{path}, row 5: 'completion' is empty" in load_error(path)


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
def test_malformed_chat_raises(tmp_path: Path, last: Any, message: str) -> None:
    path = write(tmp_path / "d.jsonl", [{"messages": [user("q"), assistant("a")]}, {"messages": last}])
    text = load_error(path)
    assert "line 2: " in text
    assert message in text


@pytest.mark.parametrize("history", [5, "text", [["one"]], [[1, 2]]])
def test_malformed_history_raises(tmp_path: Path, history: Any) -> None:
    path = write(tmp_path / "d.jsonl", [{"instruction": "a", "output": "b", "history": history}])
    assert "history" in load_error(path)


def test_repeated_id_raises(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{**row, "id": "same"} for row in pairs(2)])
    assert "line 2: id 'same' is taken" in load_error(path)


def test_unknown_columns_error_lists_the_accepted_columns(tmp_path: Path) -> None:
    text = load_error(write(tmp_path / "d.jsonl", [{"question": "q", "answer": "a"}]))
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
        ("d.json", b'[{"messages": [{"role": "user", "role": "system"}]}]', "the key 'role' is repeated"),
        ("d.json", b'[\n{"prompt": "q"\n', "line 3: not valid JSON"),
        ("d.json", b'{"prompt": "q"}', "must be one JSON array"),
        ("d.json", b'{"prompt": "q"}\n{"prompt": "q"}', "name it .jsonl"),
        ("d.json", b"[]", "fewer than 8 different prompts in 0 usable rows"),
        ("d.json", b"", "the file is empty"),
        ("d.jsonl", b"\n \n", "the file is empty"),
        ("d.jsonl.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("d.jsonl.gz", b"not gzip", "not a gzip file"),
        ("d.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], "not a gzip file"),
        ("d.parquet", b"", "not readable as Parquet"),
        ("d.parquet", b"PAR1 no", "not readable as Parquet"),
        ("d.csv", b"prompt,completion", "unknown suffix"),
        ("d.parquet.gz", b"", "unknown suffix"),
    ],
)
def test_unreadable_file_raises(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert message in (text := load_error(path))
    assert FIX.search(text)


def test_path_that_is_missing_or_a_folder_raises(tmp_path: Path) -> None:
    assert "does not exist" in load_error(tmp_path / "none.jsonl")
    assert "is a folder" in load_error(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        source(tmp_path / "none.jsonl").fingerprint()


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in pairs(8)))
    assert len(examples(path)) == 8


def test_too_few_prompts_raise(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i % 7}", "completion": f"a{i}"} for i in range(20)]
    assert "fewer than 8 different prompts in 20 usable rows" in load_error(write(tmp_path / "d.jsonl", rows))


@pytest.mark.parametrize(
    "wrong",
    [{"validation": 0}, {"test": 0}, {"test": 0.95}, {"test": float("nan")}, {"limit": 7}, {"limit": 0}],
)
def test_settings_out_of_range_raise(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        source(tmp_path / "d.jsonl", **wrong)


def test_gzip_bomb_raises_before_it_fills_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=9) as stream:
        for _ in range(64):
            stream.write(bytes(2**20))
    with pytest.raises(UserError, match=r"data\.jsonl\.gz: .* more than 200 times"):
        list(read_rows(str(file)))
