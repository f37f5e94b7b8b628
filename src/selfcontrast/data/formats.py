"""The row formats that supervised data comes in: a row's columns to (prompt, target, rejected)."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from selfcontrast.data.example import Message

Row = Mapping[str, Any]


class RowError(Exception):
    """What is wrong with a row, without its place: the reader of the file adds that."""


class NoTarget(RowError):
    """A row whose answer is missing or null: what is wrong, where a target is required, and its prompt."""

    def __init__(self, reason: str, prompt: list[Message]) -> None:
        super().__init__(reason)
        self.prompt = prompt


class OddRow(Exception):
    """A dialogue of a kind that occurs in published files: left out and counted under this reason."""


class Parsed(NamedTuple):
    """One row: the prompt ends with the user, the target is not blank, rejected is "" where there is none.

    `more_rejected` has further rejected answers.
    """

    prompt: list[Message]
    target: str
    rejected: str
    more_rejected: tuple[str, ...] = ()

    @property
    def every_rejected(self) -> tuple[str, ...]:
        return (self.rejected, *self.more_rejected) if self.rejected else ()


def recognise(columns: Collection[str]) -> Callable[[Row], Parsed] | None:
    """The parser for rows with these columns; None where none fits.

    The parser raises `RowError` for a malformed row, and `OddRow` for a dialogue to be left out.
    """
    parse = next((parse for needed, parse in FORMATS.items() if set(needed) <= set(columns)), None)
    return None if parse is None else lambda row: in_turns(parse(row))


def prompt_alone(row: Row) -> list[Message] | None:
    """The prompt of a row whose answer is missing or null; None for a row that has one.

    Raises:
        RowError: for a row that is malformed in another way, or with an answer in a column that its format does not
            read.
    """
    parse = recognise(row) or next((parse for name, parse in UNANSWERED.items() if name in row), None)
    if parse is None:
        return None
    try:
        parse(row)
        return None
    except NoTarget as error:
        if other := next((name for name in TARGETS if _last_answer(row.get(name))), None):
            raise RowError(f"{error}, but '{other}' holds an answer: rename it") from None
        _check_prompt(error.prompt)
        return in_turns(Parsed(error.prompt, "", "")).prompt


def prompt_of(row: Row) -> list[Message]:
    """The prompt alone: of a row of any format, or of one with `prompt` and no target. Raises as its parser does."""
    parse = recognise(row)
    return parse(row).prompt if parse else in_turns(Parsed(_prompt(row), "", "")).prompt


def ranked_texts(value: Any) -> list[str] | None:
    """Return [chosen, rejected, …] of a list of texts, blank rejected ones left out; None for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        return None
    return [value[0], *(text(item, "a rejected answer") for item in value[1:] if item.strip())]


def other_targets(row: Row, target: str) -> list[tuple[str, str]]:
    """The columns that hold another text than `target` which could be the target, each as (used, other)."""
    needed = next(needed for needed in FORMATS if set(needed) <= set(row))
    used = next((name for name in TARGETS if name in needed), needed[0])
    if used in CHATS and _last_answer(row[used]) is None:
        used = "chosen"
    found = {name: _last_answer(row.get(name)) for name in (*TARGETS, *CHATS) if name != used}
    return [(used, name) for name, answer in found.items() if answer and answer.strip() != target.strip()]


def _last_answer(value: Any) -> str | None:
    """The answer in a text, a message, a list of messages that ends with the assistant's, or a list of texts."""
    if isinstance(value, str):
        return value
    if texts := ranked_texts(value):
        return texts[0]
    last = value[-1] if isinstance(value, list) and value else value
    if not isinstance(last, dict) or _ROLES.get(str(last.get("role", last.get("from")))) != "assistant":
        return None
    content = last.get("content", last.get("value"))
    return content if isinstance(content, str) else None


def in_turns(parsed: Parsed) -> Parsed:
    """Split a prompt that is a rendered dialogue, given as one message of the user, into its turns.

    Raises `RowError` for a rendering that only its own template can read back.
    """
    *before, last = parsed.prompt
    if any(message["role"] != "system" for message in before):
        return parsed
    whole = last["content"]
    if whole.rstrip().endswith((":", ">", "]", "assistant", "model")) and (
        template := next((name for name, pattern in RENDERED.items() if pattern.fullmatch(whole)), None)
    ):
        raise RowError(f"the prompt is a dialogue rendered by a template ({template}): give its turns as messages")
    if not HUMAN.match(whole):
        return parsed
    turns = _turns(whole, waits=True) if WAITING.search(whole) else _asked(whole)

    def answer(given: str) -> str:  # alone, or with the dialogue before it
        return re.sub(r"^\s*Assistant:", "", given.removeprefix(whole)).strip()

    target, rejected, *more = map(answer, (parsed.target, parsed.rejected, *parsed.more_rejected))
    return Parsed([*before, *turns], target, rejected, tuple(more))


def _asked(dialogue: str) -> list[Message]:
    """The turns of a dialogue that ends with the user's."""
    *turns, _ = _turns(dialogue + "\n\nAssistant: -")
    return turns


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
        raise NoTarget(f"the last message of '{column}' must be the assistant's", prompt)
    return Parsed(prompt, target, *_rejected(row, prompt))


def _alpaca(row: Row, target: str) -> Parsed:
    """Alpaca, with LLaMA-Factory's optional `system` and `history` ([[user, assistant], ...]).

    In LLaMA-Factory's older preference data, `output` is [chosen, rejected].
    """
    content = text(_get(row, "instruction"), "'instruction'")
    if (extra := row.get("input")) is not None and text(extra, "'input'", blank=True).strip():
        content += "\n\n" + extra
    prompt = [*_system(row), *_history(row), Message(role="user", content=content)]
    if texts := ranked_texts(row.get(target)):
        return Parsed(prompt, text(texts[0], f"the first of '{target}'"), *_split(texts[1:]))
    return Parsed(prompt, _reply(row, target, prompt), *_rejected(row, prompt))


def _completion(row: Row, target: str) -> Parsed:
    """`prompt` and `completion` (or `target`, or `chosen`, `rejected`), each a text or a list of messages."""
    prompt = _prompt(row)
    return Parsed(prompt, _reply(row, target, prompt), *_rejected(row, prompt))


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

# Rows of no format, for want of an answer.
UNANSWERED: dict[str, Callable[[Row], Parsed]] = {
    "prompt": partial(_completion, target="completion"),
    "instruction": partial(_alpaca, target="output"),
}

TARGETS = ("chosen", "completion", "target", "output", "response")  # columns that hold an answer alone
CHATS = ("messages", "conversations")

HUMAN = re.compile(r"\s*Human:(?=.*\n\nAssistant:)|\n\nHuman:", re.DOTALL)  # how a dialogue of hh-rlhf begins
WAITING = re.compile(r"\n\nAssistant:\s*$")
# Prompts that begin with the user's marker and end where the assistant's answer would begin, by their template.
RENDERED = {
    name: re.compile(pattern, re.DOTALL)
    for name, pattern in {
        "ChatML": r"\s*<\|im_start\|>.*<\|im_start\|>assistant\s*",
        "Llama 3": r".*<\|start_header_id\|>.*<\|start_header_id\|>assistant<\|end_header_id\|>\s*",
        "Llama 2, Mistral": r"\s*(<s>)?\s*\[INST\].*\[/INST\]\s*",
        "Gemma": r"\s*(<bos>)?\s*<start_of_turn>.*<start_of_turn>model\s*",
        "Zephyr, Phi-3": r"\s*(<s>)?\s*<\|(user|system)\|>.*<\|assistant\|>\s*",
        "DeepSeek": r".*<[|｜]User[|｜]>.*<[|｜]Assistant[|｜]>\s*",
        "OpenChat": r".*GPT4 Correct User:.*GPT4 Correct Assistant:\s*",
        "Alpaca": r"(.*\n)?\s*#+ ?(Instruction|Human|User):.*\n#+ ?(Response|Assistant):\s*",
        "Vicuna": r"(.*\s)?(USER|User): .*\s(ASSISTANT|Assistant):\s*",
    }.items()
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
    value = row.get(column)
    if value is None:
        raise NoTarget(f"column '{column}' is missing or null", prompt)
    if isinstance(value, str):
        return text(value, f"'{column}'")
    messages = _messages([value] if isinstance(value, dict) else value, column)
    if messages[:-1] not in ([], prompt) or not messages or messages[-1]["role"] != "assistant":
        raise RowError(f"'{column}' must be a text or one assistant message (the prompt may precede it)")
    return messages[-1]["content"]


def _rejected(row: Row, prompt: list[Message]) -> tuple[str, tuple[str, ...]]:
    """The first rejected answer, and further ones: `rejected` may be a list of texts."""
    value = row.get("rejected")
    if value in (None, "", []):
        return "", ()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return _split([text(item, "a text of 'rejected'") for item in value if item.strip()])
    return _reply(row, "rejected", prompt), ()


def _split(rejected: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    return (rejected[0], tuple(rejected[1:])) if rejected else ("", ())


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
