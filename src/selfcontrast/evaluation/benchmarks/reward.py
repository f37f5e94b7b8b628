"""Compute win rates under a reward model, as in the paper: the answer with the higher reward wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from selfcontrast.constrained import Count, Samples, check_numbers
from selfcontrast.data.example import Example, Verifier
from selfcontrast.evaluation.benchmarks.answers import AnswerRequest
from selfcontrast.evaluation.benchmarks.benchmark import Line, Options, Subject, answers_of
from selfcontrast.evaluation.finite import check_finite
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.statistics import mean_interval, win_rate
from selfcontrast.models.reward import Response, RewardModel
from selfcontrast.models.truncation import report_unread, unread

REWARDS = "rewards.parquet"
SFT = "SFT"


@dataclass(frozen=True)
class RewardWins:
    """Compare the rewards of answers to the held-out prompts with those of the targets and of the SFT model's answers.

    Attributes:
        limit: number of prompts, starting with the first; None for all.
        samples: answers per prompt. If a prompt has fewer, all are used.
    """

    limit: Count | None
    samples: Samples
    reward_model: RewardModel

    def __post_init__(self) -> None:
        check_numbers(self, "")

    @property
    def relative(self) -> bool:
        return False

    def check(self, verifier: Verifier | None) -> None:
        self.reward_model.check()

    def skip_reason(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        return None

    def answer_request(self, examples: Sequence[Example]) -> AnswerRequest | None:
        return None

    def own_prompts(self) -> dict[str, str]:
        return {}

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        """Write one row per prompt and sample: the reward of the answer, and of the target if the prompt has one.

        For a reward that is not finite, raise a `UserError` that names the example.
        """
        examples = {example.id: example for example in subject.examples[: self.limit]}
        answers = answers_of(subject.scores, subject.decoding)
        chosen = [(n, s, a) for (n, s), a in answers.items() if n in examples and s < self.samples]
        targets = [name for name, example in examples.items() if example.has_target and not example.turns]
        responses: list[Response] = [
            (Case(examples[name], len(turns) - 1, (turns,)).dialogue(turns), turns[-1]) for name, _, turns in chosen
        ]
        responses += [(examples[name].prompt, examples[name].target) for name in targets]
        with self.reward_model.open(subject.context.device) as reward:
            rewards, counts = np.asarray(reward(responses), dtype=np.float64), unread(reward, responses)
        names = [*(name for name, _, _ in chosen), *targets]
        check_finite("the reward of the answer or target", names, rewards)
        unread_text = report_unread(f"reward {subject.label}", counts, "tokens", "raise its reward_model.max_tokens")
        target_rewards = dict(zip(targets, rewards[len(chosen) :], strict=True))
        frame = pd.DataFrame([{"id": name, "sample": sample, "answer": turns[-1]} for name, sample, turns in chosen])
        frame["reward"] = rewards[: len(chosen)]
        frame["target_reward"] = frame["id"].map(target_rewards)
        frame.to_parquet(folder / REWARDS)
        return {
            "answers": len(chosen),
            "targets": len(targets),
            "reward": float(frame["reward"].mean()),
            **unread_text,
        }

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """Return the mean of sigmoid(reward) and the win rates. A tie is half a win."""
        frames = {name: pd.read_parquet(folder / REWARDS) for name, folder in folders.items()}
        settings = vars(options)
        lines = []
        for name, frame in frames.items():
            mean = mean_interval(expit(frame["reward"].to_numpy()), frame["id"], **settings)
            lines.append(Line(name, "mean of sigmoid(reward)", "share", mean))
            single = frame.dropna(subset="target_reward")
            if len(single):
                wins = outcomes(single["reward"], single["target_reward"])
                lines.append(
                    Line(
                        name,
                        "win rate over target",
                        "share",
                        win_rate(wins, single["id"], confidence=options.confidence),
                    )
                )
            if name != SFT and SFT in frames:
                paired = frame.merge(frames[SFT], on=["id", "sample"], suffixes=("", "_base"))
                wins = outcomes(paired["reward"], paired["reward_base"])
                value = win_rate(wins, paired["id"], confidence=options.confidence)
                lines.append(Line(name, "win rate over SFT", "share", value))
        return lines


def outcomes(rewards: Any, opponents: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return 1 where the reward is higher than the opponent's, 0.5 for a tie, 0 where it is lower, [n]."""
    return 0.5 + 0.5 * np.sign(np.asarray(rewards, dtype=np.float64) - np.asarray(opponents, dtype=np.float64))
