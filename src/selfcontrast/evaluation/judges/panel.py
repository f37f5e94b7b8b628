"""Use several judges as one: take the mean of their values, and measure how far they disagree."""

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
    CountingJudge,
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
    """The members' judgments as one: the mean of their values, or the status of the first failed member."""

    members: tuple[Judgment, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A panel of judges. They work one after the other. Each judges every case, with its own prompt, ledger and price.

    Attributes:
        judges: at least two `selfcontrast.evaluation.judges.Judge` objects, by name.
    """

    judges: dict[Text, Any]

    def __post_init__(self) -> None:
        for name, judge in self.judges.items():
            if not hasattr(judge, "cost"):
                raise UserError(f"judges.{name}: not a judge. Give it a _target_, as the files in conf/judge/ do.")
        if len(self.judges) < 2:
            raise UserError(
                f"judges={list(self.judges)}: a panel needs two judges or more. Use a single one directly as the judge."
            )
        self._reject_duplicates(self.judges)

    def _reject_duplicates(self, descriptions: Mapping[str, Any]) -> None:
        """Raise `UserError` for a judge that would be counted, and paid for, twice."""
        for (first, judge), (second, other) in combinations(descriptions.items(), 2):
            if judge == other:
                raise UserError(
                    f"judges.{second} is the same judge as judges.{first} and would count twice. Give it another model "
                    "or other settings, or remove it."
                )

    @property
    def verdict(self) -> str:
        """How comparisons are read: "logprob" if at least one judge weights letters by probability, else "text"."""
        modes = {getattr(judge, "verdict", "text") for judge in self.judges.values()}
        return "logprob" if "logprob" in modes else "text"

    def check(self, verifier: Verifier | None) -> None:
        for name, judge in self.judges.items():
            try:
                judge.check(verifier)
            except UserError as error:
                raise UserError(f"judge.judges.{name}: {error}") from error
        self._reject_duplicates(settings_of(self.judges))  # compares only settings that change verdicts

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        """Sum the costs of all members' judgments, each at its judge's price; None if no judge has a price."""
        costs = [
            judge.cost([judgment.members[index] for judgment in judgments if isinstance(judgment, PanelJudgment)])
            for index, judge in enumerate(self.judges.values())
        ]
        known_costs = [cost for cost in costs if cost is not None]
        return sum(known_costs) if known_costs else None

    def ready(self, context: JudgeContext) -> None:
        """Send one request to each judge behind a server; raise `UserError` if one does not answer."""
        for name, judge in self.judges.items():
            if isinstance(judge, RemoteJudge):
                try:
                    judge.ready(context)
                except UserError as error:
                    raise UserError(f"judge.judges.{name}: {error}") from error

    @contextmanager
    def open(self, context: JudgeContext) -> Iterator[Judging]:
        counts: list[Counts] = []

        def judging(cases: Sequence[Case]) -> list[Judgment]:
            by_judge = []
            for judge in self.judges.values():  # one at a time, since two local models may not fit into memory
                with judge.open(context) as ask:
                    by_judge.append(ask(cases))
                    counts.append(unread(ask, cases))
            return [combine(members) for members in zip(*by_judge, strict=True)]

        yield CountingJudge(judging, lambda cases: np.concatenate(counts))


def combine(members: Sequence[Judgment]) -> PanelJudgment:
    """Combine the members' judgments of one case."""
    failed = next((member for member in members if member.status != "ok"), None)
    value = None if failed else float(np.mean([member.value for member in members]))
    return PanelJudgment(
        status=failed.status if failed else "ok",
        value=value,
        reply=failed.reply if failed else "\n\n".join(f"[{m.value:g}] {m.reply}" for m in members),
        prompt_tokens=sum(member.prompt_tokens for member in members),
        completion_tokens=sum(member.completion_tokens for member in members),
        members=tuple(members),
    )


def disagreement(judgments: Sequence[Judgment]) -> dict[str, float]:
    """Measure how far a panel's judges disagree, over usable judgments. Return {} for a single judge.

    `judges_apart` is the mean absolute difference between two judges, in units of their values: grades from 1 to 10, or
    outcomes from 0 to 1. `judges_disagree` is the fraction of judgments in which not all judges agree on the grade, or
    on the side (better, worse, neither).
    """
    panels = [j for j in judgments if isinstance(j, PanelJudgment) and j.status == "ok"]
    if not panels:
        return {}
    values = np.array([[member.value for member in j.members] for j in panels], dtype=np.float64)
    pairs = list(combinations(range(values.shape[1]), 2))
    mean_difference = np.mean([np.abs(values[:, a] - values[:, b]) for a, b in pairs])
    sides = np.sign(values - 0.5) if values.max() <= 1 else values  # grades are 1 or more
    disagree = np.mean((sides != sides[:, :1]).any(axis=1))
    return {"judges": values.shape[1], "judges_apart": float(mean_difference), "judges_disagree": float(disagree)}


def has_verifier(judge: Any) -> bool:
    """Return True for the verifier and for a panel with it. Such a judge can only grade the data's own prompts."""
    if isinstance(judge, Panel):
        return any(map(has_verifier, judge.judges.values()))
    return isinstance(judge, VerifierJudge)
