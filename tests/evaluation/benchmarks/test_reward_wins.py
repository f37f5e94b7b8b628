"""Win rates under a small reward model, which the test trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from judging import around, pair, single
from measuring import answered, subject
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import Options
from selfcontrast.evaluation.benchmarks.reward import REWARDS, RewardWins, outcomes
from selfcontrast.evaluation.judges.reward_model import RewardJudge
from selfcontrast.models.reward import RewardModel
from tiny import example, tokenizer

OPTIONS = Options(confidence=0.95, n_bootstrap=200, seed=0)
GOOD, BAD = "a cat", "a dog"


def _trained(folder: Path) -> RewardModel:
    """A classifier that has learnt to reward answers about cats and no others."""
    own = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(own), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, num_labels=1, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows = []
    for name in "abcd":
        for answer in (GOOD, BAD):
            messages = [{"role": "user", "content": f"what is {name}?"}, {"role": "assistant", "content": answer}]
            rows.append(own.apply_chat_template(messages, return_tensors="pt", return_dict=False))
    for _ in range(40):
        rewards = torch.cat([model(ids).logits[:, 0] for ids in rows]).view(-1, 2)
        loss = -torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(str(folder))
    own.save_pretrained(str(folder))
    return RewardModel(str(folder), None, "float32", 128, "last_token", trust_remote_code=False, batch_size=4)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return _trained(tmp_path_factory.mktemp("reward"))


def test_win_rates_over_targets_and_sft(reward_model: RewardModel, tmp_path: Path) -> None:
    """Targets are [bad, bad, good, good]; what each system makes of them stands beside its answers."""
    targets = {"a": BAD, "b": BAD, "c": GOOD, "d": GOOD}
    examples = [example(name, f"what is {name}?", target) for name, target in targets.items()]
    said = {
        "SFT": {"a": GOOD, "b": BAD, "c": GOOD, "d": BAD},  # win, tie, tie, loss
        "Self-Contrast": {"a": GOOD, "b": BAD, "c": GOOD, "d": GOOD},  # win, tie, tie, tie; over SFT one win in four
    }
    of = RewardWins(None, 1, reward_model)
    for name, answers in said.items():
        scores = answered(tmp_path / f"{name} scores", {(key, 0): [text] for key, text in answers.items()})
        (tmp_path / name).mkdir()
        of.run(tmp_path / name, subject(examples, scores, label=name))
    lines = of.lines({name: tmp_path / name for name in said}, OPTIONS)
    found = {(line.system, line.what): line.value.estimate for line in lines}
    assert found["SFT", "win rate over target"] == 0.5
    assert found["Self-Contrast", "win rate over target"] == 0.625
    assert found["Self-Contrast", "win rate over SFT"] == 0.625
    bare = [replace(one, target="", has_target=False) if one.id in "ab" else one for one in examples]
    (tmp_path / "bare").mkdir()
    facts = of.run(tmp_path / "bare", subject(bare, tmp_path / "SFT scores", label="SFT"))
    assert (facts["answers"], facts["targets"]) == (4, 2)
    single = {line.what: line.value.estimate for line in of.lines({"SFT": tmp_path / "bare"}, OPTIONS)}
    assert single["win rate over target"] == 0.25  # of c and d: a tie and a loss
    model, own = AutoModelForSequenceClassification.from_pretrained(reward_model.path).eval(), tokenizer()
    sigmoids = []
    for key, text in said["SFT"].items():
        messages = [{"role": "user", "content": f"what is {key}?"}, {"role": "assistant", "content": text}]
        with torch.inference_mode():
            sigmoids.append(model(own.apply_chat_template(messages, return_tensors="pt", return_dict=False)).logits)
    expected = torch.cat(sigmoids).sigmoid().mean().item()
    assert found["SFT", "mean of sigmoid(reward)"] == pytest.approx(expected, abs=1e-5)


def test_a_dialogue_has_no_target_to_win_over(reward_model: RewardModel, tmp_path: Path) -> None:
    examples = [example("a", "what is a?", GOOD), example("t", "?", "!", turns=["what is a?", "what is b?"])]
    scores = answered(tmp_path / "scores", {("a", 0): [BAD], ("t", 0): [BAD, GOOD]})
    RewardWins(None, 1, reward_model).run(tmp_path, subject(examples, scores))
    frame = pd.read_parquet(tmp_path / REWARDS).set_index("id")
    assert frame["target_reward"].isna().to_dict() == {"a": False, "t": True}
    assert frame.loc["t", "answer"] == GOOD


@dataclass(frozen=True)
class Rewards:
    """A reward model that gives the answers about some prompts NaN."""

    broken: tuple[str, ...]

    @contextmanager
    def open(self, device: str) -> Iterator[Any]:
        yield lambda asked: [float("nan") if messages[-1]["content"] in self.broken else 1.0 for messages, _ in asked]


def test_a_reward_that_is_no_number_is_refused_with_its_example(tmp_path: Path) -> None:
    """Five of ten targets without a reward were dropped, and the win rate went from 45% to 90%."""
    examples = [example(name, f"what is {name}?", GOOD) for name in "abcdefghij"]
    scores = answered(tmp_path / "scores", {(e.id, 0): [BAD] for e in examples})
    broken: Any = Rewards(tuple(f"what is {name}?" for name in "bdfhj"))
    with pytest.raises(UserError, match=r"reward .* to example 'b' is nan \(10 of 20 are so\)"):
        RewardWins(None, 1, broken).run(tmp_path, subject(examples, scores))
    assert not (tmp_path / REWARDS).exists()


def test_ties_are_half_a_win() -> None:
    assert outcomes([1.0, 2.0, -3.0], [1.0, 1.0, 0.0]).tolist() == [0.5, 1, 0]


def test_a_reward_model_as_a_judge(reward_model: RewardModel) -> None:
    judge = RewardJudge(reward_model)
    judge.check(None)
    cases = [pair(GOOD, BAD, "a"), pair(BAD, GOOD, "a"), pair(GOOD, GOOD, "a"), single(GOOD, "a"), single(BAD, "a")]
    with judge.open(around(Path("none"))) as judging:
        found = [j.value or 0.0 for j in judging(cases)]
    assert found[:3] == [1, 0, 0.5]
    assert 10 >= found[3] > found[4] >= 1
