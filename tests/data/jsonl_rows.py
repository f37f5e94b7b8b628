"""Write rows to files in the formats that `selfcontrast.data.jsonl` reads, and read them back."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfcontrast.data.example import Example, Message
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.errors import UserError

Row = dict[str, Any]


def source(
    path: Path, *, validation: float = 0.05, test: float = 0.1, limit: int | None = None, targets: Any = "required"
) -> Jsonl:
    return Jsonl(str(path), validation, test, limit, None, targets)


def examples(path: Path, **settings: Any) -> list[Example]:
    """Return the examples of all splits, sorted by id."""
    loaded = source(path, **settings).load()
    return sorted((example for split in loaded.values() for example in split), key=lambda e: e.id)


def write(path: Path, rows: list[Any]) -> Path:
    """Write rows to a file in the format that its suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if ".jsonl" in path.suffixes:
        # Some editors leave a blank line at the end.
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
    """Return the example of one row, from a file with seven other rows of the same format."""
    rows = [row] + [{**row, **_vary(row, i)} for i in range(7)]
    matches = [e for e in examples(write(tmp_path / "one.jsonl", rows)) if "padding" not in e.prompt[-1]["content"]]
    assert len(matches) == 1
    return matches[0]


def _vary(row: Row, i: int) -> Row:
    text = f"padding {i}"
    chat = {"messages": [user(text), assistant("a")], "conversations": [user(text), assistant("a")]}
    plain = {"instruction": text, "prompt": text}
    dialogue = {"chosen": f"\n\nHuman: {text}\n\nAssistant: a", "rejected": "b"}
    options = chat if chat.keys() & row.keys() else plain if plain.keys() & row.keys() else dialogue
    return {column: value for column, value in options.items() if column in row}


def load_error(path: Path) -> str:
    """Return the message of the error that loading raises: one line with the path."""
    with pytest.raises(UserError) as caught:
        source(path).load()
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message
