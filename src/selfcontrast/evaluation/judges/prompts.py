"""The prompt that a judge reads, from our templates.

A template is rendered in one pass, so braces in an answer stay what they are. Everything that somebody else wrote
stands between lines with a sign that is derived from all of it: no text can contain the sign that it helps to make.
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
FIVE_GRADED = ("arena_hard", "arena_hard_creative")  # whose verdicts are of five degrees; in no other judge's key
_HOLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class _Part:
    title: str
    text: str


def judge_prompt(case: Case, longest: int) -> str:
    """The whole prompt. Of an answer beyond `longest` characters the middle is left out, and the judge is told."""
    names = ("A", "B") if case.pairwise else ("",)
    systems = {
        f"dialogue_{name}".rstrip("_").lower(): _dialogue(case, answers, name, longest)
        for name, answers in zip(names, case.answers, strict=True)
    }
    references = [_Part(f"reference answer to turn {at + 1}", text) for at, text in enumerate(case.references)]
    sign = _sign([*(part for parts in systems.values() for part in parts), *references])
    blocks = {name: _fenced(parts, sign) for name, parts in (systems | {"references": references}).items()}
    kind = "pairwise" if case.pairwise else "single"
    name = case.wording or (f"{kind}_reference" if references else kind)
    return _filled(_template(name), blocks | {"sign": sign})


@cache
def templates_hash(names: tuple[str, ...] = NAMES) -> str:
    """Of templates, by default all that judges share: one that is asked in other words is another judge."""
    return hashlib.sha256("\0".join(_template(name) for name in names).encode()).hexdigest()


@cache
def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")


def _filled(template: str, values: dict[str, str]) -> str:
    return _HOLE.sub(lambda hole: values[hole[1]], template)


def _dialogue(case: Case, answers: Sequence[str], name: str, longest: int) -> list[_Part]:
    who = {"user": "user", "system": "instructions to the assistant", "assistant": f"assistant {name}".rstrip()}
    last: Message = {"role": "assistant", "content": answers[case.turn]}
    messages = [*case.dialogue(answers), last]
    parts = [_Part(who[m["role"]], _clean(m["content"], longest)) for m in messages]
    return [*parts[:-1], _Part(f"{parts[-1].title}: the answer to judge", parts[-1].text)]


def _clean(text: str, longest: int) -> str:
    """Text that can be sent (no half of a surrogate pair), of bounded length."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters are left out here …]\n{text[len(text) - half :]}"


def _sign(parts: Sequence[_Part]) -> str:
    return hashlib.sha256("\0".join(f"{part.title}\0{part.text}" for part in parts).encode()).hexdigest()[:16]


def _fenced(parts: Sequence[_Part], sign: str) -> str:
    lines = [line for part in parts for line in (f"==== {sign} {part.title} ====", part.text)]
    return "\n".join([*lines, f"==== {sign} end ===="])
