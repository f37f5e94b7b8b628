"""Parse rows of supervised data: from a row's columns to prompt, target and rejected answers."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from selfcontrast.data.example import Message

Row = Mapping[str, Any]


class RowError(Exception):
    """An error in a row. The reader of the file adds the location and `fix`.

    Args:
        problem: what is wrong, without a full stop. If rows with errors are dropped, they are counted by this text.
        fix: what to do, as a sentence.
    """

    def __init__(self, problem: str, fix: str = "Correct the row, or remove it.") -> None:
        super().__init__(problem)
        self.fix = fix


class NoTarget(RowError):
    """A row whose answer is missing or null. The exception's text is the error message if targets are required."""

    def __init__(self, problem: str, prompt: list[Message]) -> None:
        super().__init__(problem)
        self.prompt = prompt


class SkippedRow(Exception):
    """A dialogue of a kind that occurs in published files and is skipped. Rows are counted by the exception's text."""


class ParsedRow(NamedTuple):
    """A parsed row. The prompt ends with the user's message, and the target is not blank.

    `rejected` is "" if there is none; `more_rejected` has further rejected answers.
    """

    prompt: list[Message]
    target: str
    rejected: str
    more_rejected: tuple[str, ...] = ()

    @property
    def all_rejected(self) -> tuple[str, ...]:
        return (self.rejected, *self.more_rejected) if self.rejected else ()


def recognise(columns: Collection[str]) -> Callable[[Row], ParsedRow] | None:
    """Return the parser for rows with these columns; None for unknown columns.

    The parser raises `RowError` for a malformed row, and `SkippedRow` for a dialogue to skip.
    """
    parse = next((parse for needed, parse in FORMATS.items() if set(needed) <= set(columns)), None)
    return None if parse is None else lambda row: split_turns(parse(row))


def prompt_without_answer(row: Row) -> list[Message] | None:
    """Return the prompt of a row whose answer is missing or null; None for a row with an answer.

    Raises:
        RowError: for a row that is malformed in another way, or has an answer in a column that its format does not
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
            raise RowError(f"{error}, but '{other}' has an answer", "Rename the column.") from None
        _check_prompt(error.prompt)
        return split_turns(ParsedRow(error.prompt, "", "")).prompt


def prompt_of(row: Row) -> list[Message]:
    """Return the prompt of a row of any format, or of a row with `prompt` and no target.

    Raises the errors of the format's parser.
    """
    parse = recognise(row)
    return parse(row).prompt if parse else split_turns(ParsedRow(_prompt(row), "", "")).prompt


def ranked_texts(value: Any) -> list[str] | None:
    """Return [chosen, rejected, …] from a list of texts, without blank rejected ones; None for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        return None
    return [value[0], *(text(item, "a rejected answer") for item in value[1:] if item.strip())]


def other_targets(row: Row, target: str) -> list[tuple[str, str]]:
    """Return pairs (target's column, other column) if the other column has another text that could be the target."""
    needed = next(needed for needed in FORMATS if set(needed) <= set(row))
    used = next((name for name in TARGETS if name in needed), needed[0])
    if used in CHATS and _last_answer(row[used]) is None:
        used = "chosen"
    answers = {name: _last_answer(row.get(name)) for name in (*TARGETS, *CHATS) if name != used}
    return [(used, name) for name, answer in answers.items() if answer and answer.strip() != target.strip()]


def _last_answer(value: Any) -> str | None:
    """Return the answer in a text, a message, a list of texts, or a list of messages that ends with the assistant's."""
    if isinstance(value, str):
        return value
    if texts := ranked_texts(value):
        return texts[0]
    last = value[-1] if isinstance(value, list) and value else value
    if not isinstance(last, dict) or _ROLES.get(str(last.get("role", last.get("from")))) != "assistant":
        return None
    content = last.get("content", last.get("value"))
    return content if isinstance(content, str) else None


def split_turns(parsed: ParsedRow) -> ParsedRow:
    """Split a prompt that is one user message with a rendered dialogue into its turns.

    Raises `RowError` for a rendering that only its own template can parse.
    """
    *before, last = parsed.prompt
    if any(message["role"] != "system" for message in before):
        return parsed
    rendered = last["content"]
    if rendered.rstrip().endswith((":", ">", "]", "assistant", "model")) and (
        template := next((name for name, pattern in RENDERED.items() if pattern.fullmatch(rendered)), None)
    ):
        raise RowError(f"the prompt is a dialogue rendered by a template ({template})", "Give its turns as messages.")
    if not HUMAN.match(rendered):
        return parsed
    turns = _turns(rendered, awaits_answer=True) if AWAITS_ANSWER.search(rendered) else _until_user(rendered)

    def answer(text_: str) -> str:  # `text_` may begin with the dialogue
        return re.sub(r"^\s*Assistant:", "", text_.removeprefix(rendered)).strip()

    target, rejected, *more = map(answer, (parsed.target, parsed.rejected, *parsed.more_rejected))
    return ParsedRow([*before, *turns], target, rejected, tuple(more))


def _until_user(dialogue: str) -> list[Message]:
    """Return the turns of a dialogue that ends with a user message."""
    *turns, _ = _turns(dialogue + "\n\nAssistant: -")
    return turns


def text(value: Any, label: str, *, blank: bool = False) -> str:
    """Return the value if it is valid text. Raise `RowError` for another type, and for blank text unless `blank`."""
    if not isinstance(value, str):
        raise RowError(f"{label} must be text, not {type(value).__name__}")
    if not blank and not value.strip():
        raise RowError(f"{label} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair, which cannot be written as UTF-8
        raise RowError(f"{label} has an unpaired surrogate, which is not valid text") from None
    return value


def _chat(row: Row, column: str) -> ParsedRow:
    """Parse OpenAI `messages` or ShareGPT `conversations`.

    If the assistant wrote the last message, it is the target. If the user wrote it, `chosen` is the target, as in
    LLaMA-Factory's preference data.
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
    return ParsedRow(prompt, target, *_rejected(row, prompt))


def _alpaca(row: Row, target: str) -> ParsedRow:
    """Parse Alpaca rows, with LLaMA-Factory's optional `system` and `history` ([[user, assistant], ...]).

    In LLaMA-Factory's older preference data, `output` is [chosen, rejected].
    """
    content = text(_get(row, "instruction"), "'instruction'")
    if (extra := row.get("input")) is not None and text(extra, "'input'", blank=True).strip():
        content += "\n\n" + extra
    prompt = [*_system(row), *_history(row), Message(role="user", content=content)]
    if texts := ranked_texts(row.get(target)):
        return ParsedRow(prompt, text(texts[0], f"the first of '{target}'"), *_split(texts[1:]))
    return ParsedRow(prompt, _reply(row, target, prompt), *_rejected(row, prompt))


def _completion(row: Row, target: str) -> ParsedRow:
    """Parse `prompt` and `completion` (or `target`, or `chosen`, `rejected`), each a text or a list of messages."""
    prompt = _prompt(row)
    return ParsedRow(prompt, _reply(row, target, prompt), *_rejected(row, prompt))


def _prompt(row: Row) -> list[Message]:
    value = _get(row, "prompt")
    if isinstance(value, str):
        prompt = [Message(role="user", content=text(value, "'prompt'"))]
    else:
        prompt = _messages(value, "prompt")
    _check_prompt(prompt)
    return prompt


def _ranked(row: Row) -> ParsedRow:
    """Parse Nectar: a dialogue that awaits the assistant's answer, and answers that have a model's name and a rank.

    The best answer is the target, the worst is `rejected`: the data does not say which rejected answer standard DPO
    should use.
    """
    prompt = _turns(text(_get(row, "prompt"), "'prompt'"), awaits_answer=True)
    answers = _get(row, "answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowError("'answers' must be a list of objects with answer and rank")
    ranked = [(answer.get("rank"), answer.get("answer")) for answer in answers]
    if not all(isinstance(rank, int | float) and isinstance(answer, str) for rank, answer in ranked):
        raise SkippedRow("an answer without a text or a rank")
    best_first = [answer for _, answer in sorted(ranked, key=lambda pair: pair[0]) if answer.strip()]
    if not best_first:
        raise SkippedRow("no answer that is not empty")
    return ParsedRow(
        prompt,
        text(best_first[0], "the best answer"),
        best_first[-1] if best_first[-1].strip() != best_first[0].strip() else "",
    )


def _dialogues(row: Row) -> ParsedRow:
    """Parse two dialogues, as in hh-rlhf. Keep `rejected` only if both have the same prompt."""
    *prompt, last = _turns(text(_get(row, "chosen"), "'chosen'"))
    try:
        *other, answer = _turns(text(_get(row, "rejected"), "'rejected'"))
    except SkippedRow:
        return ParsedRow(prompt, last["content"], "")
    return ParsedRow(prompt, last["content"], answer["content"] if other == prompt else "")


_PREFERENCE = ("chosen", "rejected")
# The first format whose columns all exist is used. `chosen` precedes `output`, because `rejected` was compared with it.
FORMATS: dict[tuple[str, ...], Callable[[Row], ParsedRow]] = {
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

# Parsers of rows without an answer column, by the prompt's column.
UNANSWERED: dict[str, Callable[[Row], ParsedRow]] = {
    "prompt": partial(_completion, target="completion"),
    "instruction": partial(_alpaca, target="output"),
}

TARGETS = ("chosen", "completion", "target", "output", "response")  # columns that hold only an answer
CHATS = ("messages", "conversations")

HUMAN = re.compile(r"\s*Human:(?=.*\n\nAssistant:)|\n\nHuman:", re.DOTALL)  # the beginning of a dialogue in hh-rlhf
AWAITS_ANSWER = re.compile(r"\n\nAssistant:\s*$")
# Patterns of prompts that begin with the user's marker and end where the assistant's answer would begin, by template.
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


def _messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(f"'{column}' must be a list of messages, not {type(value).__name__}")
    return [_message(item, f"message {i} of '{column}'") for i, item in enumerate(value, start=1)]


def _message(value: Any, label: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"{label} must be an object with role and content, not {type(value).__name__}")
    name = value.get("role", value.get("from"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{label} has the unknown role {name!r} (known: {', '.join(_ROLES)})")
    # An empty system message is kept: some chat templates insert their own if there is none.
    content = text(value.get("content", value.get("value")), label, blank=role == "system")
    return Message(role=role, content=content)  # type: ignore[typeddict-item]


def _check_prompt(prompt: list[Message]) -> None:
    if not prompt:
        raise RowError("the prompt is empty: there is no user message before the answer")
    if prompt[-1]["role"] != "user":
        raise RowError("the last message before the answer must be the user's")


def _reply(row: Row, column: str, prompt: list[Message]) -> str:
    """Return an answer given as text, as a message, or as a list of messages: [answer] or [*prompt, answer]."""
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
    """Return the first rejected answer, and further ones: `rejected` may be a list of texts."""
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


def _turns(dialogue: str, awaits_answer: bool = False) -> list[Message]:
    """Split "\\n\\nHuman: ...\\n\\nAssistant: ..." into alternating messages. The last one is the assistant's.

    With `awaits_answer`, the assistant's last message is empty and is removed.
    """
    head, *rest = re.split(r"\n\n(Human|Assistant):", "\n\n" + dialogue.lstrip())
    speakers, contents = rest[::2], [content.strip() for content in rest[1::2]]
    if head.strip() or speakers[:1] != ["Human"]:
        raise SkippedRow("does not begin with Human")
    if speakers[-1] != "Assistant":
        raise SkippedRow("does not end with Assistant")
    if awaits_answer:
        if contents.pop():
            raise SkippedRow("the prompt contains its answer")
        speakers.pop()
    if not all(contents):
        raise SkippedRow("an empty turn")
    if any(a == b for a, b in pairwise(speakers)):
        raise SkippedRow("one speaker twice in a row")
    return [
        Message(role="user" if speaker == "Human" else "assistant", content=content)
        for speaker, content in zip(speakers, contents, strict=True)
    ]
