"""Test that the score stage scores each distinct response once, with rewards in the candidates' order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.filters.score import FILE, RewardScorer, VerifierScorer, read_rewards, score
from selfcontrast.models.reward import Response, Reward
from tiny import example

PROMPTS = [
    (example("p", "Why?", "target"), ["a", "bb", "a", "target"]),
    (example("q", "How?", "a"), []),
    (example("r", "Why?", "a"), ["ccc"]),
]


class LengthRewardModel:
    """A reward model that adds the response's length and a tenth of the question's, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    @contextmanager
    def open(self, device: str) -> Iterator[Reward]:
        def reward(responses: Sequence[Response]) -> Any:
            self.calls.append([text for _, text in responses])
            lengths = [len(text) + len(dialogue[-1]["content"]) / 10 for dialogue, text in responses]
            return np.array(lengths, dtype=np.float32)

        yield reward


def test_score_writes_rewards_in_the_order_of_the_candidates(tmp_path: Path) -> None:
    model: Any = LengthRewardModel()
    summary = score(tmp_path, model, Local(1, 3), PROMPTS, "cpu")
    assert summary == {"prompts": 3, "responses": 8, "distinct": 6}
    assert model.calls == [
        ["target", "a", "bb"],
        ["a", "a", "ccc"],
    ]  # each shard has whole prompts and at least three responses
    stored = list(read_rewards(tmp_path))
    assert [name for name, _, _ in stored] == [example.id for example, _ in PROMPTS]
    assert [target for _, target, _ in stored] == pytest.approx([6.4, 1.4, 1.4])
    assert [rewards.tolist() for _, _, rewards in stored] == [
        pytest.approx([1.4, 2.4, 1.4, 6.4]),
        [],
        pytest.approx([3.4]),
    ]


def test_score_reuses_existing_shards(tmp_path: Path) -> None:
    score(tmp_path, LengthRewardModel(), Local(1, 3), PROMPTS, "cpu")  # type: ignore[arg-type]
    (tmp_path / FILE).unlink()
    model: Any = LengthRewardModel()
    score(tmp_path, model, Local(1, 3), PROMPTS, "cpu")
    assert model.calls == []
    assert len(list(read_rewards(tmp_path))) == 3


def test_reward_scorer_threshold_is_the_targets_reward(tmp_path: Path) -> None:
    score(tmp_path, LengthRewardModel(), Local(1, 3), PROMPTS, "cpu")  # type: ignore[arg-type]
    scorer = RewardScorer(tmp_path)
    scores, threshold = scorer(PROMPTS[0][0], PROMPTS[0][1], [1, 0])
    assert scores.tolist() == pytest.approx([2.4, 1.4])
    assert threshold == pytest.approx(6.4)
    assert scorer.target(PROMPTS[0][0]) == threshold
    with pytest.raises(AssertionError, match="scored last"):
        scorer.target(PROMPTS[1][0])
    scores, threshold = scorer(*PROMPTS[1], [])
    assert (scores.tolist(), threshold) == ([], pytest.approx(1.4))


def test_verifier_scorer_threshold_is_one() -> None:
    class LengthVerifier:
        def score(self, item: Any, text: str, turn: int = -1) -> float:
            return 0.5 * len(text)

    scores, threshold = VerifierScorer(LengthVerifier())(PROMPTS[0][0], ["a", "bb", ""], [1, 2])
    assert (scores.tolist(), threshold) == ([1.0, 0.0], 1.0)


def test_reward_scorer_of_another_prompt_raises(tmp_path: Path) -> None:
    score(tmp_path, LengthRewardModel(), Local(1, 3), PROMPTS, "cpu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"rewards .*\bq\b.*recompute=\[score\]"):
        RewardScorer(tmp_path)(PROMPTS[1][0], PROMPTS[1][1], [])
