"""Judges that compute a number for each answer: the data's verifier, and a reward model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from selfcontrast.data.example import Verifier
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.judgment import Case, Judging, Judgment, Surroundings
from selfcontrast.evaluation.judges.verdicts import HIGHEST, LOWEST
from selfcontrast.models.reward import Response, RewardModel
from selfcontrast.store import settings_of


@dataclass(frozen=True)
class VerifierJudge:
    """The data's exact grader. A grade is 1 + 9 · score; of two answers the one with the higher score is better."""

    def check(self, verifier: Verifier | None) -> None:
        if verifier is None:
            raise UserError("judge=verifier: the data has no verifier; name another judge, such as judge=openai")

    def fingerprint(self) -> dict[str, Any]:
        return settings_of(self)

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return None

    @contextmanager
    def open(self, surroundings: Surroundings) -> Iterator[Judging]:
        verifier = surroundings.verifier
        assert verifier is not None

        def judging(cases: Sequence[Case]) -> list[Judgment]:
            return [
                _from_scores([verifier.score(case.example, own[case.turn], _turn(case)) for own in case.answers])
                for case in cases
            ]

        yield judging


@dataclass(frozen=True)
class RewardJudge:
    """A reward model. A grade is 1 + 9 · sigmoid(reward); of two answers the one with the higher reward is better."""

    reward_model: RewardModel

    def check(self, verifier: Verifier | None) -> None:
        self.reward_model.check()

    def fingerprint(self) -> dict[str, Any]:
        return {"class": settings_of(self)["class"], "reward_model": settings_of(self.reward_model)}

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return None

    @contextmanager
    def open(self, surroundings: Surroundings) -> Iterator[Judging]:
        with self.reward_model.open(surroundings.device) as reward:

            def judging(cases: Sequence[Case]) -> list[Judgment]:
                answers: list[Response] = [
                    (case.dialogue(own), own[case.turn]) for case in cases for own in case.answers
                ]
                rewards = iter(np.asarray(reward(answers), dtype=np.float64))
                own = [[float(next(rewards)) for _ in case.answers] for case in cases]
                return [_from_scores(r if len(r) == 2 else [float(expit(r[0]))]) for r in own]

            yield judging


def _turn(case: Case) -> int:
    return case.turn if case.example.turns else -1


def _from_scores(scores: Sequence[float]) -> Judgment:
    """Of one score in [0, 1] a grade; of two scores which is higher."""
    said = " against ".join(f"{score:.4f}" for score in scores)
    if len(scores) == 1:
        return Judgment("ok", LOWEST + (HIGHEST - LOWEST) * scores[0], said)
    return Judgment("ok", 0.5 + 0.5 * float(np.sign(scores[0] - scores[1])), said)
