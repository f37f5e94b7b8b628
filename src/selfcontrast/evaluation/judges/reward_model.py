"""A reward model as a judge."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from selfcontrast.data.example import Verifier
from selfcontrast.evaluation.judges.judgment import Case, CountingJudge, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.verdicts import from_scores
from selfcontrast.models.reward import Response, RewardModel
from selfcontrast.models.truncation import unread


@dataclass(frozen=True)
class RewardJudge:
    """A reward model as a judge. A grade is 1 + 9 · sigmoid(reward). In a comparison the higher reward wins."""

    reward_model: RewardModel

    def check(self, verifier: Verifier | None) -> None:
        self.reward_model.check()

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return None

    @contextmanager
    def open(self, context: JudgeContext) -> Iterator[Judging]:
        with self.reward_model.open(context.device) as reward:

            def responses(cases: Sequence[Case]) -> list[Response]:
                return [(case.dialogue(turns), turns[case.turn]) for case in cases for turns in case.answers]

            def judging(cases: Sequence[Case]) -> list[Judgment]:
                rewards = iter(np.asarray(reward(responses(cases)), dtype=np.float64))
                by_case = [[float(next(rewards)) for _ in case.answers] for case in cases]
                return [from_scores(r if len(r) == 2 else [float(expit(r[0]))]) for r in by_case]

            yield CountingJudge(judging, lambda cases: unread(reward, responses(cases)))
