"""Render the prompts of judges from templates.

All placeholders are replaced at once, so braces in an answer have no effect. Dialogues and answers stand between lines
with a sign, which is a hash of all their text. So no answer can contain the sign.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from selfcontrast.data.example import Message
from selfcontrast.evaluation.judges.judgment import Case
from selfcontrast.files import EVALUATION

TEMPLATES = EVALUATION / "judge_templates"
NAMES = ("single", "single_reference", "pairwise", "pairwise_reference")
# Templates with five verdicts. Only the keys of benchmarks that use them depend on these templates.
FIVE_GRADED = ("arena_hard", "arena_hard_creative")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class _Part:
    title: str
    text: str


def judge_prompt(case: Case, max_characters: int) -> str:
    """Render a case's prompt. If a text has more than `max_characters`, a note to the judge replaces its middle."""
    names = ("A", "B") if case.pairwise else ("",)
    systems = {
        f"dialogue_{name}".rstrip("_").lower(): _dialogue(case, answers, name, max_characters)
        for name, answers in zip(names, case.answers, strict=True)
    }
    references = [_Part(f"reference answer to turn {turn + 1}", text) for turn, text in enumerate(case.references)]
    sign = _sign([*(part for parts in systems.values() for part in parts), *references])
    blocks = {name: _fence(parts, sign) for name, parts in (systems | {"references": references}).items()}
    kind = "pairwise" if case.pairwise else "single"
    name = case.wording or (f"{kind}_reference" if references else kind)
    return _fill(_template(name), blocks | {"sign": sign})


@cache
def templates_hash(names: tuple[str, ...] = NAMES) -> str:
    """Hash templates, by default those that all judges share. With another wording, a judge has another key."""
    return hashlib.sha256("\0".join(_template(name) for name in names).encode()).hexdigest()


@cache
def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")


def _fill(template: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda placeholder: values[placeholder[1]], template)


def _dialogue(case: Case, answers: Sequence[str], name: str, max_characters: int) -> list[_Part]:
    titles = {"user": "user", "system": "instructions to the assistant", "assistant": f"assistant {name}".rstrip()}
    last: Message = {"role": "assistant", "content": answers[case.turn]}
    messages = [*case.dialogue(answers), last]
    parts = [_Part(titles[m["role"]], _clean(m["content"], max_characters)) for m in messages]
    return [*parts[:-1], _Part(f"{parts[-1].title}: the answer to judge", parts[-1].text)]


def _clean(text: str, max_characters: int) -> str:
    """Replace halves of surrogate pairs, which cannot be encoded, and the middle of a text that is too long."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= max_characters:
        return text
    half = max_characters // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters are left out here …]\n{text[len(text) - half :]}"


def _sign(parts: Sequence[_Part]) -> str:
    return hashlib.sha256("\0".join(f"{part.title}\0{part.text}" for part in parts).encode()).hexdigest()[:16]


def _fence(parts: Sequence[_Part], sign: str) -> str:
    lines = [line for part in parts for line in (f"==== {sign} {part.title} ====", part.text)]
    return "\n".join([*lines, f"==== {sign} end ===="])
