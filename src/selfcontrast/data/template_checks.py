"""Find rows that a chat template cannot render, before anything is computed."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfcontrast.data.example import Example, Message, Source, Split
from selfcontrast.data.hub import Hub
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.data.release import Release
from selfcontrast.data.rendering import Renderer, refuse_memory_addresses
from selfcontrast.errors import UserError, printable

log = logging.getLogger(__name__)

RENDER_ALL = 20_000  # in a larger split, only one example of each sequence of roles is rendered
EXCERPT = 60  # characters of a row in an error


def drop_unrenderable(
    source: Source, renderer: Renderer, splits: Mapping[Split, Sequence[Example]]
) -> tuple[dict[Split, list[Example]], list[str]]:
    """Return the examples that the template renders, and the ids of the dropped ones.

    Only rows of a published set are dropped.

    Raises:
        UserError: for a row of the user's own data, which the user can correct; for a split without renderable rows.
    """
    kept: dict[Split, list[Example]] = {}
    dropped: list[str] = []
    for split, examples in splits.items():
        failures = dict(_failures(renderer, examples))
        for id_, reason in failures.items():
            if not isinstance(source, Hub | Release):
                (row,) = [example for example in examples if example.id == id_]
                location = f" ({source.location_of(id_)})" if isinstance(source, Jsonl) else ""
                raise UserError(
                    f"data: the row {id_}{location} of the split {split}, {_excerpt(row)}, cannot be rendered: {reason}"
                )
        kept[split] = [example for example in examples if example.id not in failures]
        if failures:
            reason = next(iter(failures.values()))
            log.warning(
                "data: dropped %d of %d rows of %s, the first because of: %s",
                len(failures),
                len(examples),
                split,
                reason,
            )
        if examples and not kept[split]:
            raise UserError(f"data: no row of the split {split} can be rendered: {next(iter(failures.values()))}")
        dropped += failures
    return kept, dropped


def one_per_role_sequence(examples: Sequence[Example]) -> list[Example]:
    """Return the first example of each sequence of roles, since a template may treat sequences differently."""
    return list({tuple(m["role"] for m in full_dialogue(example)): example for example in reversed(examples)}.values())


def full_dialogue(example: Example) -> list[Message]:
    """Return the example's messages up to the last user message. Earlier turns get the target as their answer."""
    messages = list(example.prompt)
    for turn in example.turns[1:]:
        messages += [{"role": "assistant", "content": example.target or "…"}, {"role": "user", "content": turn}]
    return messages


def _failures(renderer: Renderer, examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    """Yield the id of each row that fails, and the reason.

    A row that is not rendered fails like the rendered row with the same sequence of roles.
    """
    reason_by_roles: dict[tuple[str, ...], str] = {}
    chosen = {id(e) for e in (examples if len(examples) <= RENDER_ALL else one_per_role_sequence(examples))}
    for example in examples:
        messages = full_dialogue(example)
        roles = tuple(message["role"] for message in messages)
        if id(example) in chosen:
            try:
                renderer.check(messages, example.target or "…")
                for rejected in example.all_rejected:
                    renderer.check(messages, rejected)
            except UserError as error:
                reason_by_roles[roles] = str(error)
                yield example.id, str(error)
        elif roles in reason_by_roles:
            yield example.id, reason_by_roles[roles]


def _excerpt(example: Example) -> str:
    text = printable(" / ".join(f"{m['role']}: {m['content']}" for m in example.prompt))
    return repr(text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…")


def check_tokenizer(tokenizer: Any, setting: str, examples: Sequence[Example]) -> None:
    """Render one answered dialogue of each sequence of roles, as a reward model reads it.

    Raises:
        UserError: for a tokenizer without a chat template, or a dialogue on which the template fails.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{setting}: the tokenizer has no chat template to render dialogues. Use another model.")
    for example in one_per_role_sequence(examples):
        answer = Message(role="assistant", content=example.target or "…")
        messages = [*full_dialogue(example), answer]
        try:
            refuse_memory_addresses(str(tokenizer.apply_chat_template(messages, tokenize=False)), messages)
        except Exception as error:  # a template is the model author's program: it may raise anything
            location = f"the row {example.id}, {_excerpt(example)}"
            raise UserError(
                f"{setting}: the chat template fails on {location} ({printable(str(error))}). Correct the row, or use "
                "another model."
            ) from error
