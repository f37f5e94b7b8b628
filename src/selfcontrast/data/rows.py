"""Rows of a recognised format to examples.

Rows with the same prompt and target are one example with all their rejected answers. Exact duplicates are dropped, and
odd rows counted by reason.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from selfcontrast.data.example import Example, Message
from selfcontrast.data.formats import (
    FORMATS,
    OddRow,
    Parsed,
    Row,
    RowError,
    other_targets,
    prompt_alone,
    recognise,
    text,
)
from selfcontrast.errors import UserError

DUPLICATE, ANSWERED = "exact duplicate", "no answer, and another row has the prompt with one"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        limit: the first so many usable rows; None for all.
        turns: the most messages of the user in a prompt; longer dialogues are cut to that many, and the assistant's
            answer to the last of them is the target. None for any number.
        answer_column: whose text or number becomes `Example.answer`; None for no column. Rows may lack it.
        lenient: malformed rows are dropped and counted too, as befits a published data set, which nobody here can mend.
        optional: a row whose answer is missing or null is an example without target (`Example.has_target`), unless
            another row has its prompt with an answer. Its rejected answers are not read.
    """

    limit: int | None = None
    turns: int | None = None
    answer_column: str | None = None
    lenient: bool = False
    optional: bool = False


def read_examples(
    rows: Iterable[tuple[str, Any]],
    where: str,
    dropped: Counter[str],
    how: Reading,
    places: dict[str, str] | None = None,
) -> list[Example]:
    """The examples of rows, in their order; the format is recognised from the first row's columns.

    Args:
        rows: each with its place ("line 3").
        where: what the rows are of, for errors.
        dropped: is added to, by reason.
        places: is filled with the place of each example's first row, by id.

    Raises:
        UserError: for a row that is malformed, unless `how.lenient`; in any case for a format that is not recognised.
    """
    parse = None
    named: dict[str, str] = {}  # by content the example's id
    spaced, others = 0, Counter[tuple[str, str]]()
    examples: dict[str, Example] = {}
    for place, row in rows:
        try:
            if not isinstance(row, dict):
                raise RowError(f"a row must be an object with columns, not {type(row).__name__}")
            bare = prompt_alone(row) if how.optional else None
            if bare is None and parse is None and (parse := recognise(row)) is None:
                _unrecognised(f"{where}, {place}", row)
            whole = _parsed(row, bare, parse)
            parsed = _first_turns(whole, how.turns)
            key = key_of_content([parsed.prompt, parsed.target])
            example = replace(_example(row, parsed, key), has_target=bare is None)
            if parsed is whole:  # the answer to a dialogue is none to its first turns
                example = replace(example, answer=_answer(row, how.answer_column))
            if example.id in examples and key not in named:
                raise RowError(f"id '{example.id}' is taken by an earlier row; make ids unique or rename 'id'")
        except OddRow as reason:
            dropped[str(reason)] += 1
            continue
        except RowError as error:
            if not how.lenient:
                raise UserError(f"{where}, {place}: {error}") from None
            dropped[re.sub(r"message \d+ of", "a message of", str(error))] += 1
            continue
        spaced += any(answer != answer.strip() for answer in (example.target, *example.every_rejected))
        others.update(other_targets(row, whole.target) if example.has_target else ())
        if key in named:
            earlier = examples[named[key]]
            if not (new := [text for text in example.every_rejected if text not in earlier.every_rejected]):
                dropped[DUPLICATE] += 1
                continue
            examples[earlier.id] = with_rejected(earlier, [*earlier.every_rejected, *new])
            continue
        named[key] = example.id
        examples[example.id] = example
        if places is not None:
            places[example.id] = place
        if len(examples) == how.limit:
            break
    if spaced:
        log.info("%s: %d rows have white space around an answer, which is not trained on", where, spaced)
    for (used, other), count in others.items():
        log.warning("%s: %d rows hold another possible target in '%s': '%s' is the target", where, count, other, used)
    return _without_answered(list(examples.values()), dropped)


def _parsed(row: Row, bare: list[Message] | None, parse: Callable[[Row], Parsed] | None) -> Parsed:
    """The row as its prompt alone, where that is all it has, or by its format."""
    if bare is not None:
        return Parsed(bare, "", "")
    assert parse is not None, "recognised"
    return parse(row)


def _without_answered(examples: list[Example], dropped: Counter[str]) -> list[Example]:
    """The examples less those without target whose prompt another one answers; `dropped` counts them."""
    if all(example.has_target for example in examples):
        return examples
    answered = {key_of_content(example.prompt) for example in examples if example.has_target}
    kept = [example for example in examples if example.has_target or key_of_content(example.prompt) not in answered]
    if left := len(examples) - len(kept):
        dropped[ANSWERED] += left
    return kept


def with_rejected(example: Example, rejected: Sequence[str]) -> Example:
    """The example with these rejected answers, which are different texts."""
    return replace(example, rejected=rejected[0] if rejected else "", more_rejected=list(rejected[1:]))


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
    example = Example(
        id=_string(row, "id") or key[:16],
        prompt=parsed.prompt,
        target=parsed.target,
        category=_string(row, "category"),
        reference=_string(row, "reference"),
    )
    return with_rejected(example, [*dict.fromkeys(parsed.every_rejected)])


def _answer(row: Row, column: str | None) -> str:
    """Raises `RowError` for a value that is neither a text nor a number."""
    value = None if column is None else row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return text("" if value is None else value, f"'{column}'", blank=True)


def _string(row: Row, column: str) -> str:
    value = row.get(column, "")
    if value is None or isinstance(value, str):
        return text(value or "", f"'{column}'", blank=True)
    return json.dumps(value, ensure_ascii=False, default=str)
