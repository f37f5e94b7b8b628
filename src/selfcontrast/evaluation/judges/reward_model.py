"""A reward model as a judge."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from selfcontrast.data.example import Verifier
from selfcontrast.evaluation.judges.judgment import Case, Counting, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.verdicts import from_scores
from selfcontrast.models.reward import Response, RewardModel
from selfcontrast.models.truncation import unread


@dataclass(frozen=True)
class RewardJudge:
    """A reward model. A grade is 1 + 9 · sigmoid(reward); of two answers the one with the higher reward is better."""

    reward_model: RewardModel

    def check(self, verifier: Verifier | None) -> None:
        self.reward_model.check()

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return None

    @contextmanager
    def open(self, surroundings: JudgeContext) -> Iterator[Judging]:
        with self.reward_model.open(surroundings.device) as reward:

            def shown(cases: Sequence[Case]) -> list[Response]:
                return [(case.dialogue(own), own[case.turn]) for case in cases for own in case.answers]

            def judging(cases: Sequence[Case]) -> list[Judgment]:
                answers = shown(cases)
                rewards = iter(np.asarray(reward(answers), dtype=np.float64))
                own = [[float(next(rewards)) for _ in case.answers] for case in cases]
                return [from_scores(r if len(r) == 2 else [float(expit(r[0]))]) for r in own]

            yield Counting(judging, lambda cases: unread(reward, shown(cases)))
