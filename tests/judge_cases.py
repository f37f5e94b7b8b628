"""Make cases and settings for the tests of judges."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcontrast.data.example import Example, Verifier
from selfcontrast.evaluation.judges import Case, JudgeContext
from selfcontrast.evaluation.judges.budget import Budget
from selfcontrast.evaluation.judges.replies import ReplySettings


@dataclass(frozen=True)
class LengthVerifier:
    """A verifier that gives a tenth of a point per character, at most 1."""

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        return min(1.0, len(response) / 10)


def question(name: str, *turns: str) -> Example:
    return Example(name, [{"role": "user", "content": turns[0]}], "a target", turns=list(turns) if turns[1:] else [])


def single(answer: str, name: str = "q") -> Case:
    return Case(question(name, f"What is {name}?"), 0, ((answer,),))


def pair(a: str, b: str, name: str = "q") -> Case:
    return Case(question(name, f"What is {name}?"), 0, ((a,), (b,)))


def judge_context(folder: Path, verifier: Verifier | None = None, budget: Budget | None = None) -> JudgeContext:
    """Return a context for judges that keeps judgments in `folder`."""
    return JudgeContext("cpu", verifier, folder, budget or Budget(None), "a benchmark")


def reply_settings(**changes: Any) -> ReplySettings:
    settings = {"attempts": 2, "max_tokens": 50, "max_characters": 1000, "price": None}
    return ReplySettings(**{**settings, **changes})
