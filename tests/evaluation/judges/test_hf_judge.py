"""Test the local judge with real models: two that learned a verdict and one with random weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from judge_cases import judge_context, pair, reply_settings, single
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges import Case, Judgment
from selfcontrast.evaluation.judges.budget import Budget, Price
from selfcontrast.evaluation.judges.hf import HFJudge
from selfcontrast.evaluation.judges.prompts import judge_prompt
from selfcontrast.models.loading import load_model, save_policy
from tiny import example, policy_folder, tokenizer, train_to_overfit

CASES = [single("a cat"), pair("a cat", "a dog")]
REPLIES = ["It is a cat. [[7]]", "Neither is. [[B]]"]


@pytest.fixture(scope="module")
def trained_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Train one model per case of `CASES`, until it has memorized the reply to this case. Return their folders."""
    folders = []
    for case, reply in zip(CASES, REPLIES, strict=True):
        folders.append(tmp_path_factory.mktemp("judge") / "model")
        save_policy(folders[-1], train_to_overfit([example("e", judge_prompt(case, 1000), reply)]), tokenizer(), "")
    return folders


def judge(path: Path, verdict: str = "text", max_length: int = 4096, **changes: Any) -> HFJudge:
    return HFJudge(
        str(path), "float32", 0.0, verdict, max_length, reply_settings(**{"attempts": 1, **changes}), batch_size=1
    )


def ask(judge: HFJudge, cases: Sequence[Case], folder: Path, budget: Budget | None = None) -> list[Judgment]:
    judge.check(None)
    with judge.open(judge_context(folder, budget=budget)) as judging:
        return judging(cases)


@pytest.mark.parametrize(("index", "value"), [(0, 7), (1, 0)])
def test_judgment_reads_the_models_reply(index: int, value: float, trained_models: list[Path], tmp_path: Path) -> None:
    [judgment] = ask(judge(trained_models[index]), [CASES[index]], tmp_path)
    assert (judgment.status, judgment.value, judgment.reply) == ("ok", value, REPLIES[index])
    renderer = Renderer(tokenizer())
    messages = [{"role": "user", "content": judge_prompt(CASES[index], 1000)}]
    assert judgment.prompt_tokens == len(renderer.prompt(messages))
    assert judgment.completion_tokens == len(renderer.response(messages, REPLIES[index]))


def test_judgment_in_the_ledger_is_not_computed_again(trained_models: list[Path], tmp_path: Path) -> None:
    ask(judge(trained_models[0]), CASES[:1], tmp_path)
    [ledger] = tmp_path.iterdir()
    before = ledger.read_bytes()
    assert [judgment.value for judgment in ask(judge(trained_models[0]), [CASES[0]] * 2, tmp_path)] == [7, 7]
    assert ledger.read_bytes() == before


def test_logprob_verdict_is_the_expected_outcome_under_the_model(trained_models: list[Path], tmp_path: Path) -> None:
    """The expected value comes from one forward pass over the text up to the verdict's letter."""
    [judgment] = ask(judge(trained_models[1], "logprob"), CASES[1:], tmp_path)
    renderer = Renderer(tokenizer())
    messages = [{"role": "user", "content": judge_prompt(CASES[1], 1000)}]
    text = renderer.tokenizer.decode(renderer.prompt(messages)) + REPLIES[1][: -len("B]]")]
    with torch.no_grad():
        ids = renderer.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        probabilities = load_model(trained_models[1], "float32").eval()(ids).logits[0, -1].double().softmax(-1)
    weights = {letter: float(probabilities[renderer.tokenizer.convert_tokens_to_ids(letter)]) for letter in "ABC"}
    assert judgment.value == pytest.approx((weights["A"] + weights["C"] / 2) / sum(weights.values()), rel=1e-4)
    assert 0 < judgment.value < 0.5
    assert math.isfinite(judgment.value)


def test_tokens_are_paid_from_the_jobs_budget(trained_models: list[Path], tmp_path: Path) -> None:
    priced = judge(trained_models[0], price=Price(prompt=1e6, completion=1e6))
    with pytest.raises(UserError, match=r"evaluation\.max_cost=3 "):
        ask(priced, CASES[:1], tmp_path, Budget(3))


def test_random_model_gives_no_verdict(tmp_path: Path) -> None:
    judgments = ask(judge(policy_folder(tmp_path / "policy"), max_tokens=8), CASES, tmp_path / "judgments")
    assert {j.status for j in judgments} <= {"truncated", "unparsable"}
    assert {j.value for j in judgments} == {None}


def test_prompt_beyond_max_length_gives_status_truncated_and_names_max_length(tmp_path: Path) -> None:
    judgments = ask(judge(policy_folder(tmp_path / "policy"), max_length=64), CASES, tmp_path / "judgments")
    assert {(j.status, j.value) for j in judgments} == {("truncated", None)}
    assert "judge.max_length" in judgments[0].reply


def test_check_unusable_setting_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.path="):
        judge(tmp_path).check(None)
    with pytest.raises(UserError, match=r"judge\.verdict=words"):
        judge(tmp_path, "words")
