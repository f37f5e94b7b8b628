"""The row formats that supervised data comes in: a row's columns to (prompt, target, rejected)."""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from selfcontrast.data.example import Message

Row = Mapping[str, Any]


class RowError(Exception):
    """What is wrong with a row, without its place: the reader of the file adds that."""


class OddRow(Exception):
    """A dialogue of a kind that occurs in published files: left out and counted under this reason."""


class Parsed(NamedTuple):
    """One row: the prompt ends with the user, the target is not blank, rejected is "" where there is none."""

    prompt: list[Message]
    target: str
    rejected: str


def recognise(columns: Collection[str]) -> Callable[[Row], Parsed] | None:
    """The parser for rows with these columns; None where none fits.

    The parser raises `RowError` for a malformed row, and `OddRow` for a dialogue to be left out.
    """
    return next((parse for needed, parse in FORMATS.items() if set(needed) <= set(columns)), None)


def prompt_of(row: Row) -> list[Message]:
    """The prompt alone: of a row of any format, or of one with `prompt` and no target. Raises as its parser does."""
    parse = recognise(row)
    return parse(row).prompt if parse else _prompt(row)


def pair_of(value: Any) -> tuple[str, str] | None:
    """Return (chosen, rejected) of a list of texts, where the second may be missing; None for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        return None
    rejected = value[1] if len(value) > 1 else ""
    return value[0], text(rejected, "a rejected answer", blank=True) if rejected.strip() else ""


def text(value: Any, what: str, *, blank: bool = False) -> str:
    """The value, checked. Raises `RowError` for another type, or blank text where that is not allowed."""
    if not isinstance(value, str):
        raise RowError(f"{what} must be text, not {type(value).__name__}")
    if not blank and not value.strip():
        raise RowError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair; nothing downstream can write it
        raise RowError(f"{what} holds an unpaired surrogate, which is not valid text") from None
    return value


def _chat(row: Row, column: str) -> Parsed:
    """OpenAI `messages` or ShareGPT `conversations`.

    The last message is the target; or, where it is the user's, `chosen` is (LLaMA-Factory's preference data).
    """
    prompt = [*_system(row), *_messages(_get(row, column), column)]
    if prompt and prompt[-1]["role"] == "assistant":
        target = prompt.pop()["content"]
        _check_prompt(prompt)
    elif row.get("chosen") is not None:
        _check_prompt(prompt)
        target = _reply(row, "chosen", prompt)
    else:
        raise RowError(f"the last message of '{column}' must be the assistant's")
    return Parsed(prompt, target, _rejected(row, prompt))


def _alpaca(row: Row, target: str) -> Parsed:
    """Alpaca, with LLaMA-Factory's optional `system` and `history` ([[user, assistant], ...]).

    In LLaMA-Factory's older preference data, `output` is [chosen, rejected].
    """
    content = text(_get(row, "instruction"), "'instruction'")
    if (extra := row.get("input")) is not None and text(extra, "'input'", blank=True).strip():
        content += "\n\n" + extra
    prompt = [*_system(row), *_history(row), Message(role="user", content=content)]
    if pair := pair_of(row.get(target)):
        return Parsed(prompt, text(pair[0], f"the first of '{target}'"), pair[1])
    return Parsed(prompt, _reply(row, target, prompt), _rejected(row, prompt))


def _completion(row: Row, target: str) -> Parsed:
    """`prompt` and `completion` (or `target`, or `chosen`, `rejected`), each a text or a list of messages."""
    prompt = _prompt(row)
    return Parsed(prompt, _reply(row, target, prompt), _rejected(row, prompt))


def _prompt(row: Row) -> list[Message]:
    given = _get(row, "prompt")
    if isinstance(given, str):
        prompt = [Message(role="user", content=text(given, "'prompt'"))]
    else:
        prompt = _messages(given, "prompt")
    _check_prompt(prompt)
    return prompt


def _ranked(row: Row) -> Parsed:
    """Nectar: a dialogue that waits for the assistant, and answers with a model's name and a rank.

    The best is the target. The worst is `rejected`: the data does not say which of the others standard DPO should see.
    """
    prompt = _turns(text(_get(row, "prompt"), "'prompt'"), waits=True)
    answers = _get(row, "answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowError("'answers' must be a list of objects with answer and rank")
    ranked = [(answer.get("rank"), answer.get("answer")) for answer in answers]
    if not all(isinstance(rank, int | float) and isinstance(answer, str) for rank, answer in ranked):
        raise OddRow("an answer without a text or a rank")
    own = [answer for _, answer in sorted(ranked, key=lambda pair: pair[0]) if answer.strip()]
    if not own:
        raise OddRow("no answer that is not empty")
    return Parsed(prompt, text(own[0], "the best answer"), own[-1] if own[-1].strip() != own[0].strip() else "")


def _dialogues(row: Row) -> Parsed:
    """Two dialogues, as hh-rlhf has them. `rejected` is kept only where both have the same prompt."""
    *prompt, last = _turns(text(_get(row, "chosen"), "'chosen'"))
    try:
        *other, answer = _turns(text(_get(row, "rejected"), "'rejected'"))
    except OddRow:
        return Parsed(prompt, last["content"], "")
    return Parsed(prompt, last["content"], answer["content"] if other == prompt else "")


_PREFERENCE = ("chosen", "rejected")
# The first whose columns are all there wins. `chosen` comes before `output`: it is what `rejected` lost to.
FORMATS: dict[tuple[str, ...], Callable[[Row], Parsed]] = {
    ("messages",): partial(_chat, column="messages"),
    ("conversations",): partial(_chat, column="conversations"),
    ("instruction", *_PREFERENCE): partial(_alpaca, target="chosen"),
    ("instruction", "output"): partial(_alpaca, target="output"),
    ("instruction", "response"): partial(_alpaca, target="response"),
    ("prompt", *_PREFERENCE): partial(_completion, target="chosen"),
    ("prompt", "completion"): partial(_completion, target="completion"),
    ("prompt", "target"): partial(_completion, target="target"),
    _PREFERENCE: _dialogues,
    ("prompt", "answers"): _ranked,
}

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def _get(row: Row, column: str) -> Any:
    if row.get(column) is None:
        raise RowError(f"column '{column}' is missing or null")
    return row[column]


def _messages(value: Any, what: str) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(f"'{what}' must be a list of messages, not {type(value).__name__}")
    return [_message(item, f"message {i} of '{what}'") for i, item in enumerate(value, start=1)]


def _message(value: Any, what: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"{what} must be an object with role and content, not {type(value).__name__}")
    given = value.get("role", value.get("from"))
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise RowError(f"{what} has the unknown role {given!r} (known: {', '.join(_ROLES)})")
    # An empty system message is meant: some chat templates put their own where there is none.
    content = text(value.get("content", value.get("value")), what, blank=role == "system")
    return Message(role=role, content=content)  # type: ignore[typeddict-item]


def _check_prompt(prompt: list[Message]) -> None:
    if not prompt:
        raise RowError("the prompt is empty: there is no user message before the answer")
    if prompt[-1]["role"] != "user":
        raise RowError("the last message before the answer must be the user's")


def _reply(row: Row, column: str, prompt: list[Message]) -> str:
    """An answer given as text, as a message, or as a list of messages: [answer] or [*prompt, answer]."""
    value = _get(row, column)
    if isinstance(value, str):
        return text(value, f"'{column}'")
    messages = _messages([value] if isinstance(value, dict) else value, column)
    if messages[:-1] not in ([], prompt) or not messages or messages[-1]["role"] != "assistant":
        raise RowError(f"'{column}' must be a text or one assistant message (the prompt may precede it)")
    return messages[-1]["content"]


def _rejected(row: Row, prompt: list[Message]) -> str:
    return "" if row.get("rejected") in (None, "") else _reply(row, "rejected", prompt)


def _system(row: Row) -> list[Message]:
    content = text(row.get("system") or "", "'system'", blank=True)
    return [Message(role="system", content=content)] if content else []


def _history(row: Row) -> list[Message]:
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RowError("'history' must be a list of [user, assistant] pairs")
    past: list[Message] = []
    for pair in pairs:
        past.append(Message(role="user", content=text(pair[0], "a turn of 'history'")))
        past.append(Message(role="assistant", content=text(pair[1], "a turn of 'history'")))
    return past


def _turns(dialogue: str, waits: bool = False) -> list[Message]:
    """Split "\\n\\nHuman: ...\\n\\nAssistant: ..." into alternating messages, the last the assistant's.

    A dialogue that `waits` ends with an empty turn of the assistant, which is left out.
    """
    head, *rest = re.split(r"\n\n(Human|Assistant):", "\n\n" + dialogue.lstrip())
    speakers, contents = rest[::2], [content.strip() for content in rest[1::2]]
    if head.strip() or speakers[:1] != ["Human"]:
        raise OddRow("does not begin with Human")
    if speakers[-1] != "Assistant":
        raise OddRow("does not end with Assistant")
    if waits:
        if contents.pop():
            raise OddRow("the prompt holds its answer")
        speakers.pop()
    if not all(contents):
        raise OddRow("an empty turn")
    if any(a == b for a, b in pairwise(speakers)):
        raise OddRow("one speaker twice in a row")
    return [
        Message(role="user" if speaker == "Human" else "assistant", content=content)
        for speaker, content in zip(speakers, contents, strict=True)
    ]
