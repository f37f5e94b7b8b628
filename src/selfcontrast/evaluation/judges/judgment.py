"""What is put before a judge, and what it says."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

from selfcontrast.data.example import Example, Message, Verifier
from selfcontrast.evaluation.judges.budget import Budget
from selfcontrast.models.truncation import Counts

Status = Literal["ok", "out_of_range", "unparsable", "refused", "api_error", "truncated"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Case:
    """One answer to grade, or two to compare.

    Attributes:
        example: what was asked.
        turn: the one that is judged, counted from 0; the earlier ones are context.
        answers: per system, in the order in which they are shown, its answers to all turns up to this one.
        references: right answers to the turns up to this one; empty where there are none.
        sample: which of the system's answers, where it gave several.
        swapped: whether the system in question is shown second.
        wording: the template of a comparison whose verdict is one of five, from [[A>>B]] to [[B>>A]]; None for ours,
            of three.
    """

    example: Example
    turn: int
    answers: tuple[tuple[str, ...], ...]
    references: tuple[str, ...] = ()
    sample: int = 0
    swapped: bool = False
    wording: str | None = None

    @property
    def pairwise(self) -> bool:
        return len(self.answers) == 2

    def dialogue(self, answers: Sequence[str]) -> list[Message]:
        """The dialogue of one system up to the user's message whose answer is judged."""
        if not self.example.turns:
            return list(self.example.prompt)
        messages: list[Message] = []
        for at, asked in enumerate(self.example.turns[: self.turn + 1]):
            messages.append({"role": "user", "content": asked})
            if at < self.turn:
                messages.append({"role": "assistant", "content": answers[at]})
        return messages


@dataclass(frozen=True)
class Judgment:
    """What became of a case.

    Attributes:
        value: where the status is ok. A grade from 1 to 10; of two answers, how far the one shown first is better:
            1 for a win, 0.5 for a tie, 0 for a loss, and what lies between where a verdict is weighed. Of five verdicts
            0.75 and 0.25 are a slight win and loss. Else None.
        reply: the judge's own words, or why there are none.
        prompt_tokens, completion_tokens: of all tries, whenever they were made.
    """

    status: Status
    value: float | None
    reply: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.value is not None) or not math.isfinite(self.value or 0.0):
            raise ValueError(f"a judgment that is {self.status} with the value {self.value}")


@dataclass(frozen=True)
class JudgeContext:
    """What judges may need of the job.

    Attributes:
        verifier: the job's, where it has one.
        judgments: folder of the judgments that were paid for, which all jobs share.
        budget: the job's, which all its benchmarks share.
        who: the benchmark and the system that judgments are asked for.
    """

    device: str
    verifier: Verifier | None
    judgments: Path
    budget: Budget
    who: str


Judging = Callable[[Sequence[Case]], list[Judgment]]
"""A judgment of each case, in their order."""


@dataclass(frozen=True)
class Counting:
    """A judge at work that counts how much of the cases it does not read (`models.truncation`)."""

    judge: Judging
    unread: Callable[[Sequence[Case]], Counts]

    def __call__(self, cases: Sequence[Case]) -> list[Judgment]:
        return self.judge(cases)


@runtime_checkable
class RemoteJudge(Protocol):
    """A judge that somebody else runs."""

    def ready(self, surroundings: JudgeContext) -> None:
        """Ask it once. Raises `UserError` where it does not answer."""


class Judge(Protocol):
    """A way of judging. Its fields are its config."""

    def check(self, verifier: Verifier | None) -> None:
        """Raises `UserError` for what can be known before any compute."""

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        """What they cost, where a price is known."""
        ...

    def open(self, surroundings: JudgeContext) -> AbstractContextManager[Judging]:
        """Loads what judges, and frees it in the end."""
        ...
