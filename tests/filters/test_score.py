"""The stage score: every distinct response once, rewards in the candidates' order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.filters.score import FILE, Rewarded, Verified, read_rewards, score
from selfcontrast.models.reward import Response, Reward
from tiny import example

PROMPTS = [
    (example("p", "Why?", "target"), ["a", "bb", "a", "target"]),
    (example("q", "How?", "a"), []),
    (example("r", "Why?", "a"), ["ccc"]),
]


class Lengths:
    """The reward is the length of the response, and a tenth of the question's; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    @contextmanager
    def open(self, device: str) -> Iterator[Reward]:
        def reward(responses: Sequence[Response]) -> Any:
            self.asked.append([text for _, text in responses])
            return np.array([len(text) + len(said[-1]["content"]) / 10 for said, text in responses], dtype=np.float32)

        yield reward


def test_rewards_by_hand_in_the_candidates_order(tmp_path: Path) -> None:
    model: Any = Lengths()
    summary = score(tmp_path, model, Local(1, 3), PROMPTS, "cpu")
    assert summary == {"prompts": 3, "responses": 8, "distinct": 6}
    assert model.asked == [["target", "a", "bb"], ["a", "a", "ccc"]]  # whole prompts, three responses at least
    found = list(read_rewards(tmp_path))
    assert [name for name, _, _ in found] == [example.id for example, _ in PROMPTS]
    assert [target for _, target, _ in found] == pytest.approx([6.4, 1.4, 1.4])
    assert [rewards.tolist() for _, _, rewards in found] == [
        pytest.approx([1.4, 2.4, 1.4, 6.4]),
        [],
        pytest.approx([3.4]),
    ]


def test_shards_that_are_there_are_not_scored_again(tmp_path: Path) -> None:
    score(tmp_path, Lengths(), Local(1, 3), PROMPTS, "cpu")  # type: ignore[arg-type]
    (tmp_path / FILE).unlink()
    again: Any = Lengths()
    score(tmp_path, again, Local(1, 3), PROMPTS, "cpu")
    assert again.asked == []
    assert len(list(read_rewards(tmp_path))) == 3


def test_a_candidate_is_as_good_as_the_target_from_its_reward_on(tmp_path: Path) -> None:
    score(tmp_path, Lengths(), Local(1, 3), PROMPTS, "cpu")  # type: ignore[arg-type]
    judge = Rewarded(tmp_path)
    scores, threshold = judge(PROMPTS[0][0], PROMPTS[0][1], [1, 0])
    assert scores.tolist() == pytest.approx([2.4, 1.4])
    assert threshold == pytest.approx(6.4)
    assert judge.target(PROMPTS[0][0]) == threshold
    with pytest.raises(AssertionError, match="scored last"):
        judge.target(PROMPTS[1][0])
    scores, threshold = judge(*PROMPTS[1], [])
    assert (scores.tolist(), threshold) == ([], pytest.approx(1.4))


def test_by_a_verifier_it_must_be_right_throughout() -> None:
    class Half:
        def score(self, one: Any, text: str, turn: int = -1) -> float:
            return 0.5 * len(text)

    scores, threshold = Verified(Half())(PROMPTS[0][0], ["a", "bb", ""], [1, 2])
    assert (scores.tolist(), threshold) == ([1.0, 0.0], 1.0)


def test_rewards_of_another_prompt_are_refused(tmp_path: Path) -> None:
    score(tmp_path, Lengths(), Local(1, 3), PROMPTS, "cpu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rewards are of other candidates"):
        Rewarded(tmp_path)(PROMPTS[1][0], PROMPTS[1][1], [])
