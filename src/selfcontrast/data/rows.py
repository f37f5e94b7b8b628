"""Rows of a recognised format to examples: exact duplicates are dropped, and odd rows counted by reason."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

from selfcontrast.data.example import Example
from selfcontrast.data.formats import FORMATS, OddRow, Parsed, Row, RowError, recognise, text
from selfcontrast.errors import UserError

DUPLICATE = "exact duplicate"


def read_examples(
    rows: Iterable[tuple[str, Any]],
    where: str,
    dropped: Counter[str],
    limit: int | None,
    turns: int | None = None,
    lenient: bool = False,
) -> list[Example]:
    """The examples of rows, in their order; the format is recognised from the first row's columns.

    Args:
        rows: each with its place ("line 3").
        where: what the rows are of, for errors.
        dropped: is added to, by reason.
        limit: the first so many usable rows; None for all.
        turns: the most messages of the user in a prompt; longer dialogues are cut to that many, and the assistant's
            answer to the last of them is the target. None for any number.
        lenient: malformed rows are dropped and counted too, as befits a published data set, which nobody here can mend.

    Raises:
        UserError: for a row that is malformed, unless `lenient`; in any case for a format that is not recognised.
    """
    parse = None
    content: set[str] = set()
    examples: dict[str, Example] = {}
    for place, row in rows:
        try:
            if not isinstance(row, dict):
                raise RowError(f"a row must be an object with columns, not {type(row).__name__}")
            if parse is None and (parse := recognise(row)) is None:
                _unrecognised(f"{where}, {place}", row)
            parsed = _first_turns(parse(row), turns)
            key = key_of_content([parsed.prompt, parsed.target])
            example = _example(row, parsed, key)
            if example.id in examples and key not in content:
                raise RowError(f"id '{example.id}' is taken by an earlier row; make ids unique or rename 'id'")
        except OddRow as reason:
            dropped[str(reason)] += 1
            continue
        except RowError as error:
            if not lenient:
                raise UserError(f"{where}, {place}: {error}") from None
            dropped[re.sub(r"message \d+ of", "a message of", str(error))] += 1
            continue
        if key in content:
            dropped[DUPLICATE] += 1
            continue
        content.add(key)
        examples[example.id] = example
        if len(examples) == limit:
            break
    return list(examples.values())


def reasons(dropped: Counter[str]) -> str:
    """What was dropped, the most frequent reason first: "an empty turn: 3, exact duplicate: 1"."""
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.most_common())


def key_of_content(content: object) -> str:
    """sha256 of the content as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _first_turns(parsed: Parsed, turns: int | None) -> Parsed:
    """Cut a longer dialogue to its first turns; it has no rejected answer then."""
    asked = [i for i, message in enumerate(parsed.prompt) if message["role"] == "user"]
    if turns is None or len(asked) <= turns:
        return parsed
    end = asked[turns - 1] + 1
    if parsed.prompt[end]["role"] != "assistant":
        raise OddRow("one speaker twice in a row")
    return Parsed(parsed.prompt[:end], parsed.prompt[end]["content"], "")


def _unrecognised(place: str, row: Row) -> NoReturn:
    accepted = " | ".join(" + ".join(columns) for columns in FORMATS)
    raise UserError(
        f"{place}: no known format has the columns {', '.join(row) or '(none)'}; rename them to one of: {accepted}"
    )


def _example(row: Row, parsed: Parsed, key: str) -> Example:
    return Example(
        id=_string(row, "id") or key[:16],
        prompt=parsed.prompt,
        target=parsed.target,
        category=_string(row, "category"),
        reference=_string(row, "reference"),
        rejected=parsed.rejected,
    )


def _string(row: Row, column: str) -> str:
    value = row.get(column, "")
    if value is None or isinstance(value, str):
        return text(value or "", f"'{column}'", blank=True)
    return json.dumps(value, ensure_ascii=False, default=str)
