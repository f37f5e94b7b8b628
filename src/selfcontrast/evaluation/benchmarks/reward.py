"""Win rate under a reward model, as in the paper: the answer with the higher reward wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from selfcontrast.constrained import Count, Samples, check_numbers
from selfcontrast.data.example import Example, Verifier
from selfcontrast.evaluation.benchmarks.answers import Asking
from selfcontrast.evaluation.benchmarks.benchmark import Line, Options, Subject, answers_of
from selfcontrast.evaluation.finite import check_finite
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.statistics import mean_interval, win_rate
from selfcontrast.models.reward import Response, RewardModel
from selfcontrast.models.unread import report_unread, unread

REWARDS = "rewards.parquet"
SFT = "SFT"


@dataclass(frozen=True)
class RewardWins:
    """Rewards of the held-out prompts' answers, against those of the targets and of the SFT model's answers.

    Attributes:
        limit: the first so many prompts; None for all.
        samples: answers per prompt, at most those that there are.
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

    def left_out(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        return None

    def asking(self, examples: Sequence[Example]) -> Asking | None:
        return None

    def own_prompts(self) -> dict[str, str]:
        return {}

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        """Write a row per prompt and sample: the reward of the answer, and of the target where there is one for it.

        Raises `UserError` for a reward that is no number, with the id of its example.
        """
        examples = {example.id: example for example in subject.examples[: self.limit]}
        answers = answers_of(subject.scores, subject.decoding)
        chosen = [(n, s, a) for (n, s), a in answers.items() if n in examples and s < self.samples]
        targets = [name for name, example in examples.items() if example.has_target and not example.turns]
        asked: list[Response] = [
            (Case(examples[name], len(own) - 1, (own,)).dialogue(own), own[-1]) for name, _, own in chosen
        ]
        asked += [(examples[name].prompt, examples[name].target) for name in targets]
        with self.reward_model.open(subject.surroundings.device) as reward:
            rewards, counts = np.asarray(reward(asked), dtype=np.float64), unread(reward, asked)
        names = [*(name for name, _, _ in chosen), *targets]
        check_finite("the reward of the answer or target", names, rewards)
        told = report_unread(f"reward {subject.label}", counts, "tokens", "raise its reward_model.max_tokens")
        of_target = dict(zip(targets, rewards[len(chosen) :], strict=True))
        frame = pd.DataFrame([{"id": name, "sample": sample, "answer": own[-1]} for name, sample, own in chosen])
        frame["reward"] = rewards[: len(chosen)]
        frame["target_reward"] = frame["id"].map(of_target)
        frame.to_parquet(folder / REWARDS)
        return {"answers": len(chosen), "targets": len(targets), "reward": float(frame["reward"].mean()), **told}

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """The mean of sigmoid(reward), and win rates, in which a tie is half a win."""
        frames = {name: pd.read_parquet(folder / REWARDS) for name, folder in folders.items()}
        settings = vars(options)
        found = []
        for name, frame in frames.items():
            mean = mean_interval(expit(frame["reward"].to_numpy()), frame["id"], **settings)
            found.append(Line(name, "mean of sigmoid(reward)", "share", mean))
            single = frame.dropna(subset="target_reward")
            if len(single):
                wins = outcomes(single["reward"], single["target_reward"])
                found.append(
                    Line(
                        name,
                        "win rate over target",
                        "share",
                        win_rate(wins, single["id"], confidence=options.confidence),
                    )
                )
            if name != SFT and SFT in frames:
                both = frame.merge(frames[SFT], on=["id", "sample"], suffixes=("", "_base"))
                wins = outcomes(both["reward"], both["reward_base"])
                found.append(
                    Line(name, "win rate over SFT", "share", win_rate(wins, both["id"], confidence=options.confidence))
                )
        return found


def outcomes(own: Any, other: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """1 for a win, 0.5 for a tie, 0 for a loss, [n]."""
    return 0.5 + 0.5 * np.sign(np.asarray(own, dtype=np.float64) - np.asarray(other, dtype=np.float64))
