"""Several judges as one: the mean of what they say, and how far they disagree."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from selfcontrast.constrained import Text
from selfcontrast.data.example import Verifier
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.judgment import (
    Case,
    Counting,
    JudgeContext,
    Judging,
    Judgment,
    RemoteJudge,
)
from selfcontrast.evaluation.judges.verifier import VerifierJudge
from selfcontrast.models.truncation import Counts, unread
from selfcontrast.store import settings_of


@dataclass(frozen=True)
class PanelJudgment(Judgment):
    """The mean of the members' values where all are ok; else the status of the first that is not."""

    members: tuple[Judgment, ...] = ()


@dataclass(frozen=True)
class Panel:
    """Every case is put before all judges, one judge after the other, each with its own prompt, ledger and price.

    Attributes:
        judges: by name, two or more, each a `selfcontrast.evaluation.judges.Judge`.
    """

    judges: dict[Text, Any]

    def __post_init__(self) -> None:
        for name, judge in self.judges.items():
            if not hasattr(judge, "cost"):
                raise UserError(f"judges.{name}: no judge; give it a _target_, as the files in conf/judge/ do")
        if len(self.judges) < 2:
            raise UserError(
                f"judges={list(self.judges)}: a panel needs two judges or more; name one alone as the judge"
            )
        self._refuse_equal(self.judges)

    def _refuse_equal(self, described: Mapping[str, Any]) -> None:
        """Refuse a judge that would be counted, and paid for, twice."""
        for (first, one), (second, other) in combinations(described.items(), 2):
            if one == other:
                raise UserError(
                    f"judges.{second} is the same judge as judges.{first}, and would count twice: give it another "
                    f"model or settings, or leave it out"
                )

    @property
    def verdict(self) -> str:
        """How comparisons are read: weighed where one of the judges weighs them."""
        ways = {getattr(judge, "verdict", "text") for judge in self.judges.values()}
        return "logprob" if "logprob" in ways else "text"

    def check(self, verifier: Verifier | None) -> None:
        for name, judge in self.judges.items():
            try:
                judge.check(verifier)
            except UserError as error:
                raise UserError(f"judge.judges.{name}: {error}") from error
        self._refuse_equal(settings_of(self.judges))  # equal but for what changes no verdict, such as a batch

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        """Of all members' judgments, each at its judge's price; None where no judge has one."""
        costs = [
            judge.cost([judgment.members[at] for judgment in judgments if isinstance(judgment, PanelJudgment)])
            for at, judge in enumerate(self.judges.values())
        ]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if known else None

    def ready(self, surroundings: JudgeContext) -> None:
        """Ask each judge that somebody else runs. Raises `UserError` where one does not answer."""
        for name, judge in self.judges.items():
            if isinstance(judge, RemoteJudge):
                try:
                    judge.ready(surroundings)
                except UserError as error:
                    raise UserError(f"judge.judges.{name}: {error}") from error

    @contextmanager
    def open(self, surroundings: JudgeContext) -> Iterator[Judging]:
        counts: list[Counts] = []

        def judging(cases: Sequence[Case]) -> list[Judgment]:
            by_judge = []
            for (
                judge
            ) in self.judges.values():  # one at a time: two models of this process need not fit beside each other
                with judge.open(surroundings) as ask:
                    by_judge.append(ask(cases))
                    counts.append(unread(ask, cases))
            return [combined(members) for members in zip(*by_judge, strict=True)]

        yield Counting(judging, lambda cases: np.concatenate(counts))


def combined(members: Sequence[Judgment]) -> PanelJudgment:
    """The members' judgments of one case as one."""
    bad = next((member for member in members if member.status != "ok"), None)
    value = None if bad else float(np.mean([member.value for member in members]))
    return PanelJudgment(
        status=bad.status if bad else "ok",
        value=value,
        reply=bad.reply if bad else "\n\n".join(f"[{m.value:g}] {m.reply}" for m in members),
        prompt_tokens=sum(member.prompt_tokens for member in members),
        completion_tokens=sum(member.completion_tokens for member in members),
        members=tuple(members),
    )


def disagreement(judgments: Sequence[Judgment]) -> dict[str, float]:
    """How far a panel's judges are apart, over the judgments that can be used; nothing for a single judge.

    `judges_apart` is the mean absolute difference between two judges, in units of what they give: grades from 1 to 10,
    or outcomes from 0 to 1. `judges_disagree` is the share of judgments in which they do not all say the same: another
    grade, or another side (better, worse, neither).
    """
    panels = [j for j in judgments if isinstance(j, PanelJudgment) and j.status == "ok"]
    if not panels:
        return {}
    values = np.array([[member.value for member in j.members] for j in panels], dtype=np.float64)
    pairs = list(combinations(range(values.shape[1]), 2))
    apart = np.mean([np.abs(values[:, a] - values[:, b]) for a, b in pairs])
    sides = np.sign(values - 0.5) if values.max() <= 1 else values  # a grade is 1 at least: all ones agree either way
    disagree = np.mean((sides != sides[:, :1]).any(axis=1))
    return {"judges": values.shape[1], "judges_apart": float(apart), "judges_disagree": float(disagree)}


def has_verifier(judge: Any) -> bool:
    """Tell whether a judge is the verifier, or a panel with it, which can grade the data's own prompts only."""
    if isinstance(judge, Panel):
        return any(map(has_verifier, judge.judges.values()))
    return isinstance(judge, VerifierJudge)
