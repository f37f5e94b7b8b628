"""Convert rows of a recognised format to examples.

Rows with the same prompt and target become one example with all their rejected answers. Exact duplicates are dropped.
Skipped rows are counted by reason.
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
    ParsedRow,
    Row,
    RowError,
    SkippedRow,
    other_targets,
    prompt_without_answer,
    recognise,
    text,
)
from selfcontrast.errors import UserError

DUPLICATE, ANSWERED = "exact duplicate", "no answer, and another row answers the prompt"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadOptions:
    """The settings for reading rows.

    Attributes:
        limit: number of usable rows to read; None for all.
        turns: maximum number of user messages in a prompt. A longer dialogue is cut after that many, and the
            assistant's answer to the last remaining one is the target. None for no maximum.
        answer_column: the column whose text or number becomes `Example.answer`; None for no column. Rows may lack it.
        lenient: drop and count malformed rows too, as for published data sets, which the user cannot correct.
        optional: read a row whose answer is missing or null as an example without target (`Example.has_target`), unless
            another row answers the same prompt. The row's rejected answers are not read.
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
    options: ReadOptions,
    locations: dict[str, str] | None = None,
) -> list[Example]:
    """Return the examples of rows, in their order. The first row's columns decide the format.

    Args:
        rows: pairs of a location ("line 3") and a row.
        where: name of the data, for errors.
        dropped: counter of dropped rows by reason, which this call updates.
        locations: filled with the location of each example's first row, by id.

    Raises:
        UserError: for a malformed row, unless `options.lenient`; always for an unrecognised format.
    """
    parse = None
    id_of_content: dict[str, str] = {}  # example id by hash of prompt and target
    with_white_space, ignored_targets = 0, Counter[tuple[str, str]]()
    examples: dict[str, Example] = {}
    for location, row in rows:
        try:
            if not isinstance(row, dict):
                raise RowError(f"a row must be an object with columns, not {type(row).__name__}")
            prompt_alone = prompt_without_answer(row) if options.optional else None
            if prompt_alone is None and parse is None and (parse := recognise(row)) is None:
                _refuse_columns(f"{where}, {location}", row)
            full = _parse(row, prompt_alone, parse)
            parsed = _first_turns(full, options.turns)
            key = key_of_content([parsed.prompt, parsed.target])
            example = replace(_example(row, parsed, key), has_target=prompt_alone is None)
            if parsed is full:  # the answer column belongs to the full dialogue, not to its first turns
                example = replace(example, answer=_answer(row, options.answer_column))
            if example.id in examples and key not in id_of_content:
                problem = f"id '{example.id}' is taken by an earlier row"
                raise RowError(problem, "Make ids unique, or rename the column 'id'.")
        except SkippedRow as reason:
            dropped[str(reason)] += 1
            continue
        except RowError as error:
            if not options.lenient:
                raise UserError(f"{where}, {location}: {error}. {error.fix}") from None
            dropped[re.sub(r"message \d+ of", "a message of", str(error))] += 1
            continue
        with_white_space += any(answer != answer.strip() for answer in (example.target, *example.all_rejected))
        ignored_targets.update(other_targets(row, full.target) if example.has_target else ())
        if key in id_of_content:
            earlier = examples[id_of_content[key]]
            if not (new := [text for text in example.all_rejected if text not in earlier.all_rejected]):
                dropped[DUPLICATE] += 1
                continue
            examples[earlier.id] = with_rejected(earlier, [*earlier.all_rejected, *new])
            continue
        id_of_content[key] = example.id
        examples[example.id] = example
        if locations is not None:
            locations[example.id] = location
        if len(examples) == options.limit:
            break
    if with_white_space:
        log.info("%s: ignored white space around an answer in %d rows", where, with_white_space)
    for (used, other), count in ignored_targets.items():
        log.warning("%s: '%s' is the target; ignored another text in '%s' of %d rows", where, used, other, count)
    return _drop_answered(list(examples.values()), dropped)


def _parse(row: Row, prompt_alone: list[Message] | None, parse: Callable[[Row], ParsedRow] | None) -> ParsedRow:
    """Parse a row with its format's parser. If the row has no answer, return its prompt alone."""
    if prompt_alone is not None:
        return ParsedRow(prompt_alone, "", "")
    assert parse is not None, "the format was recognised before"
    return parse(row)


def _drop_answered(examples: list[Example], dropped: Counter[str]) -> list[Example]:
    """Drop examples without target whose prompt another example answers, and count them in `dropped`."""
    if all(example.has_target for example in examples):
        return examples
    answered = {key_of_content(example.prompt) for example in examples if example.has_target}
    kept = [example for example in examples if example.has_target or key_of_content(example.prompt) not in answered]
    if count := len(examples) - len(kept):
        dropped[ANSWERED] += count
    return kept


def with_rejected(example: Example, rejected: Sequence[str]) -> Example:
    """Return the example with these rejected answers, which must be different texts."""
    return replace(example, rejected=rejected[0] if rejected else "", more_rejected=list(rejected[1:]))


def reasons(dropped: Counter[str]) -> str:
    """Format the counts of dropped rows, the most frequent reason first: "an empty turn: 3, exact duplicate: 1"."""
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.most_common())


def key_of_content(content: object) -> str:
    """Return the sha256 of the content as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _first_turns(parsed: ParsedRow, turns: int | None) -> ParsedRow:
    """Cut a dialogue after `turns` user messages, if it has more. A cut dialogue has no rejected answer."""
    user_messages = [i for i, message in enumerate(parsed.prompt) if message["role"] == "user"]
    if turns is None or len(user_messages) <= turns:
        return parsed
    end = user_messages[turns - 1] + 1
    if parsed.prompt[end]["role"] != "assistant":
        raise SkippedRow("one speaker twice in a row")
    return ParsedRow(parsed.prompt[:end], parsed.prompt[end]["content"], "")


def _refuse_columns(location: str, row: Row) -> NoReturn:
    accepted = " | ".join(" + ".join(columns) for columns in FORMATS)
    raise UserError(
        f"{location}: no known format has the columns {', '.join(row) or '(none)'}. Rename them to one of: {accepted}"
    )


def _example(row: Row, parsed: ParsedRow, key: str) -> Example:
    example = Example(
        id=_string(row, "id") or key[:16],
        prompt=parsed.prompt,
        target=parsed.target,
        category=_string(row, "category"),
        reference=_string(row, "reference"),
    )
    return with_rejected(example, [*dict.fromkeys(parsed.all_rejected)])


def _answer(row: Row, column: str | None) -> str:
    """Return the value of the answer column as text. Raise `RowError` unless it is a text or a number."""
    value = None if column is None else row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return text("" if value is None else value, f"'{column}'", blank=True)


def _string(row: Row, column: str) -> str:
    value = row.get(column, "")
    if value is None or isinstance(value, str):
        return text(value or "", f"'{column}'", blank=True)
    return json.dumps(value, ensure_ascii=False, default=str)
