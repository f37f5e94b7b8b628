"""Test win rates under a small reward model, which this file trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from benchmark_cases import subject, write_answers
from judge_cases import judge_context, pair, single
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import Options
from selfcontrast.evaluation.benchmarks.reward import REWARDS, RewardWins, outcomes
from selfcontrast.evaluation.judges.reward_model import RewardJudge
from selfcontrast.models.reward import RewardModel
from tiny import example, tokenizer

OPTIONS = Options(confidence=0.95, n_bootstrap=200, seed=0)
GOOD, BAD = "a cat", "a dog"


def _train(folder: Path) -> RewardModel:
    """Train a classifier that rewards answers about cats and no others."""
    tokens = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, num_labels=1, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows = []
    for name in "abcd":
        for answer in (GOOD, BAD):
            messages = [{"role": "user", "content": f"what is {name}?"}, {"role": "assistant", "content": answer}]
            rows.append(tokens.apply_chat_template(messages, return_tensors="pt", return_dict=False))
    for _ in range(40):
        rewards = torch.cat([model(ids).logits[:, 0] for ids in rows]).view(-1, 2)
        loss = -torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(str(folder))
    tokens.save_pretrained(str(folder))
    return RewardModel(str(folder), None, "float32", 128, "last_token", trust_remote_code=False, batch_size=4)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return _train(tmp_path_factory.mktemp("reward"))


def test_lines_report_win_rates_over_targets_and_sft(reward_model: RewardModel, tmp_path: Path) -> None:
    """The targets are bad, bad, good, good. Comments give each answer's outcome against its target."""
    targets = {"a": BAD, "b": BAD, "c": GOOD, "d": GOOD}
    examples = [example(name, f"what is {name}?", target) for name, target in targets.items()]
    answers_by_system = {
        "SFT": {"a": GOOD, "b": BAD, "c": GOOD, "d": BAD},  # win, tie, tie, loss
        "Self-Contrast": {"a": GOOD, "b": BAD, "c": GOOD, "d": GOOD},  # win, tie, tie, tie
    }
    reward_wins = RewardWins(None, 1, reward_model)
    for name, answers in answers_by_system.items():
        scores = write_answers(tmp_path / f"{name} scores", {(key, 0): [text] for key, text in answers.items()})
        (tmp_path / name).mkdir()
        reward_wins.run(tmp_path / name, subject(examples, scores, label=name))
    lines = reward_wins.lines({name: tmp_path / name for name in answers_by_system}, OPTIONS)
    values = {(line.system, line.what): line.value.estimate for line in lines}
    assert values["SFT", "win rate over target"] == 0.5
    assert values["Self-Contrast", "win rate over target"] == 0.625
    assert values["Self-Contrast", "win rate over SFT"] == 0.625  # d is a win, the others are ties
    fewer_targets = [replace(e, target="", has_target=False) if e.id in "ab" else e for e in examples]
    (tmp_path / "fewer").mkdir()
    summary = reward_wins.run(tmp_path / "fewer", subject(fewer_targets, tmp_path / "SFT scores", label="SFT"))
    assert (summary["answers"], summary["targets"]) == (4, 2)
    lines = reward_wins.lines({"SFT": tmp_path / "fewer"}, OPTIONS)
    rates = {line.what: line.value.estimate for line in lines}
    assert rates["win rate over target"] == 0.25  # c is a tie, d a loss
    model, tokens = AutoModelForSequenceClassification.from_pretrained(reward_model.path).eval(), tokenizer()
    sigmoids = []
    for key, text in answers_by_system["SFT"].items():
        messages = [{"role": "user", "content": f"what is {key}?"}, {"role": "assistant", "content": text}]
        with torch.inference_mode():
            sigmoids.append(model(tokens.apply_chat_template(messages, return_tensors="pt", return_dict=False)).logits)
    expected = torch.cat(sigmoids).sigmoid().mean().item()
    assert values["SFT", "mean of sigmoid(reward)"] == pytest.approx(expected, abs=1e-5)


def test_run_gives_dialogues_no_target_reward(reward_model: RewardModel, tmp_path: Path) -> None:
    examples = [example("a", "what is a?", GOOD), example("t", "?", "!", turns=["what is a?", "what is b?"])]
    scores = write_answers(tmp_path / "scores", {("a", 0): [BAD], ("t", 0): [BAD, GOOD]})
    RewardWins(None, 1, reward_model).run(tmp_path, subject(examples, scores))
    frame = pd.read_parquet(tmp_path / REWARDS).set_index("id")
    assert frame["target_reward"].isna().to_dict() == {"a": False, "t": True}
    assert frame.loc["t", "answer"] == GOOD


@dataclass(frozen=True)
class NanRewardModel:
    """A reward model that returns NaN for some prompts."""

    broken: tuple[str, ...]

    @contextmanager
    def open(self, device: str) -> Iterator[Any]:
        yield lambda responses: [
            float("nan") if messages[-1]["content"] in self.broken else 1.0 for messages, _ in responses
        ]


def test_run_nan_reward_is_rejected_with_its_example(tmp_path: Path) -> None:
    """An earlier version dropped targets with reward NaN. Without five of ten, the win rate was 90%, not 45%."""
    examples = [example(name, f"what is {name}?", GOOD) for name in "abcdefghij"]
    scores = write_answers(tmp_path / "scores", {(e.id, 0): [BAD] for e in examples})
    broken: Any = NanRewardModel(tuple(f"what is {name}?" for name in "bdfhj"))
    with pytest.raises(UserError, match=r"reward .*'b' is nan\. 10 of 20 "):
        RewardWins(None, 1, broken).run(tmp_path, subject(examples, scores))
    assert not (tmp_path / REWARDS).exists()


def test_outcomes_tie_is_half_a_win() -> None:
    assert outcomes([1.0, 2.0, -3.0], [1.0, 1.0, 0.0]).tolist() == [0.5, 1, 0]


def test_reward_judge_grades_and_compares(reward_model: RewardModel) -> None:
    judge = RewardJudge(reward_model)
    judge.check(None)
    cases = [pair(GOOD, BAD, "a"), pair(BAD, GOOD, "a"), pair(GOOD, GOOD, "a"), single(GOOD, "a"), single(BAD, "a")]
    with judge.open(judge_context(Path("none"))) as judging:
        values = [j.value or 0.0 for j in judging(cases)]
    assert values[:3] == [1, 0, 0.5]
    assert 10 >= values[3] > values[4] >= 1
