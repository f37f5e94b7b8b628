"""The job's verifier as a judge."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from selfcontrast.data.example import Verifier
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.judgment import Case, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.verdicts import from_scores


@dataclass(frozen=True)
class VerifierJudge:
    """The job's verifier as a judge. A grade is 1 + 9 · score. In a comparison the higher score wins."""

    def check(self, verifier: Verifier | None) -> None:
        if verifier is None:
            raise UserError(
                "judge=verifier: the job has no verifier. Set verifier=…, or choose another judge such as judge=openai."
            )

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return None

    @contextmanager
    def open(self, context: JudgeContext) -> Iterator[Judging]:
        verifier = context.verifier
        assert verifier is not None

        def judging(cases: Sequence[Case]) -> list[Judgment]:
            return [
                from_scores([verifier.score(case.example, answers[case.turn], _turn(case)) for answers in case.answers])
                for case in cases
            ]

        yield judging


def _turn(case: Case) -> int:
    return case.turn if case.example.turns else -1
