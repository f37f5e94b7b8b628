"""Rows that a chat template cannot render, found before anything is computed."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfcontrast.data.example import Example, Message, Source, Split
from selfcontrast.data.hub import Hub
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.data.release import Release
from selfcontrast.data.rendering import Renderer, refuse_addresses
from selfcontrast.errors import UserError, printable

log = logging.getLogger(__name__)

ALL = 20_000  # examples of a split that are all rendered; of a larger one, one of each sequence of roles
SHOWN = 60  # characters of a row in an error


def renderable(
    source: Source, renderer: Renderer, splits: Mapping[Split, Sequence[Example]]
) -> tuple[dict[Split, list[Example]], list[str]]:
    """The examples that the template renders, and the ids of the others, which are of a published set.

    Raises:
        UserError: for a row of the user's own, which can be mended; and where a split has none left.
    """
    kept: dict[Split, list[Example]] = {}
    left_out: list[str] = []
    for split, examples in splits.items():
        odd = dict(_odd(renderer, examples))
        for name, reason in odd.items():
            if not isinstance(source, Hub | Release):
                (row,) = [example for example in examples if example.id == name]
                place = f" ({source.place_of(name)})" if isinstance(source, Jsonl) else ""
                raise UserError(
                    f"data: the row {name}{place} of the split {split}, {_shown(row)}, cannot be rendered: {reason}. "
                    "Mend the row, or give another template: model.chat_template=FILE"
                )
        kept[split] = [example for example in examples if example.id not in odd]
        if odd:
            log.warning(
                "data: %d of %d rows of %s left out: %s", len(odd), len(examples), split, next(iter(odd.values()))
            )
        if examples and not kept[split]:
            raise UserError(f"data: no row of the split {split} can be rendered: {next(iter(odd.values()))}")
        left_out += odd
    return kept, left_out


def shapes(examples: Sequence[Example]) -> list[Example]:
    """The first example of each sequence of roles: what templates differ in."""
    return list({tuple(m["role"] for m in dialogue(example)): example for example in reversed(examples)}.values())


def dialogue(example: Example) -> list[Message]:
    """Its messages up to the one that is answered last; a played dialogue has answers of some kind in between."""
    messages = list(example.prompt)
    for turn in example.turns[1:]:
        messages += [{"role": "assistant", "content": example.target or "…"}, {"role": "user", "content": turn}]
    return messages


def _odd(renderer: Renderer, examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    """Ids of the rows that fail, with the reason."""
    failing: dict[tuple[str, ...], str] = {}
    chosen = {id(e) for e in (examples if len(examples) <= ALL else shapes(examples))}
    for example in examples:
        messages = dialogue(example)
        roles = tuple(message["role"] for message in messages)
        if id(example) in chosen:
            try:
                renderer.check(messages, example.target or "…")
                for rejected in example.every_rejected:
                    renderer.check(messages, rejected)
            except UserError as error:
                failing[roles] = str(error)
                yield example.id, str(error)
        elif roles in failing:
            yield example.id, failing[roles]


def _shown(example: Example) -> str:
    text = printable(" / ".join(f"{m['role']}: {m['content']}" for m in example.prompt))
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def check_tokenizer(tokenizer: Any, setting: str, examples: Sequence[Example]) -> None:
    """Render an answered dialogue of each sequence of roles, as reward models read them. Raises `UserError`."""
    if not tokenizer.chat_template:
        raise UserError(f"{setting}: its tokenizer has no chat template to render dialogues")
    for example in shapes(examples):
        answer = Message(role="assistant", content=example.target or "…")
        messages = [*dialogue(example), answer]
        try:
            refuse_addresses(str(tokenizer.apply_chat_template(messages, tokenize=False)), messages)
        except Exception as error:  # a template is the model author's program: it may raise anything
            row = f"the row {example.id}, {_shown(example)}"
            raise UserError(f"{setting}: its chat template fails on {row}: {printable(str(error))}") from error
