"""Define the interface of judges: the cases that they judge, their judgments, and their methods."""

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
        example: the prompt or dialogue.
        turn: the judged turn, counted from 0; earlier turns are context.
        answers: the answers of one or two systems, in the order shown. Each is a tuple over the turns up to this one.
        references: reference answers to the turns up to this one; empty if there are none.
        sample: index of the system's answer, if it gave several.
        swapped: True if the measured system is shown second.
        wording: name of a template for comparisons with five verdicts, from [[A>>B]] to [[B>>A]]; None for the default
            templates, which have three.
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
        """Return one system's dialogue up to the user's message before the judged answer."""
        if not self.example.turns:
            return list(self.example.prompt)
        messages: list[Message] = []
        for turn, question in enumerate(self.example.turns[: self.turn + 1]):
            messages.append({"role": "user", "content": question})
            if turn < self.turn:
                messages.append({"role": "assistant", "content": answers[turn]})
        return messages


@dataclass(frozen=True)
class Judgment:
    """The result of judging a case.

    Attributes:
        value: None unless the status is ok. For one answer, it is a grade from 1 to 10. For two answers, it is the
            outcome for the answer shown first: 1 is a win, 0.5 a tie, 0 a loss. Verdicts weighted by probability lie
            between these. With five verdicts, 0.75 is a slight win and 0.25 a slight loss.
        reply: the judge's text, or the reason why there is none.
        prompt_tokens, completion_tokens: summed over all tries, earlier runs included.
    """

    status: Status
    value: float | None
    reply: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.value is not None) or not math.isfinite(self.value or 0.0):
            raise ValueError(f"status {self.status} does not fit value {self.value}")


@dataclass(frozen=True)
class JudgeContext:
    """The parts of a job that judges need.

    Attributes:
        verifier: the job's verifier, if it has one.
        judgments: folder of paid judgments, shared by all jobs.
        budget: the job's budget, shared by all its benchmarks.
        label: the benchmark and system that judgments are for, named in messages.
    """

    device: str
    verifier: Verifier | None
    judgments: Path
    budget: Budget
    label: str


Judging = Callable[[Sequence[Case]], list[Judgment]]
"""Judge all cases; return the judgments in the same order."""


@dataclass(frozen=True)
class CountingJudge:
    """An open judge that also counts how much text of the cases it does not read (`models.truncation`)."""

    judge: Judging
    unread: Callable[[Sequence[Case]], Counts]

    def __call__(self, cases: Sequence[Case]) -> list[Judgment]:
        return self.judge(cases)


@runtime_checkable
class RemoteJudge(Protocol):
    """A judge behind a server."""

    def ready(self, context: JudgeContext) -> None:
        """Send one request; raise `UserError` if there is no answer."""


class Judge(Protocol):
    """A judge. Its fields are its configuration."""

    def check(self, verifier: Verifier | None) -> None:
        """Raise `UserError` for every mistake that can be found before anything is computed."""

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        """Return the cost of the judgments; None without a price."""
        ...

    def open(self, context: JudgeContext) -> AbstractContextManager[Judging]:
        """Load the judge's model or open its connection; release it at the end."""
        ...
