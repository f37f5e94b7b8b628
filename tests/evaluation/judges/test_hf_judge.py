"""A judge in this process: real models, one that has learned to give verdicts and one of random weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from judging import around, pair, reading, single
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges import Case, Judgment
from selfcontrast.evaluation.judges.budget import Budget, Price
from selfcontrast.evaluation.judges.hf import HFJudge
from selfcontrast.evaluation.judges.prompts import judge_prompt
from selfcontrast.models.loading import load_model, save_policy
from tiny import example, policy_folder, taught, tokenizer

CASES = [single("a cat"), pair("a cat", "a dog")]
REPLIES = ["It is a cat. [[7]]", "Neither is. [[B]]"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of each of `CASES` a model that knows by heart what to reply to it."""
    folders = []
    for case, reply in zip(CASES, REPLIES, strict=True):
        folders.append(tmp_path_factory.mktemp("judge") / "model")
        save_policy(folders[-1], taught([example("e", judge_prompt(case, 1000), reply)]), tokenizer(), "")
    return folders


def judge(path: Path, verdict: str = "text", max_length: int = 4096, **changes: Any) -> HFJudge:
    return HFJudge(str(path), "float32", 0.0, verdict, max_length, reading(**{"attempts": 1, **changes}), batch_size=1)


def ask(judge: HFJudge, cases: Sequence[Case], folder: Path, budget: Budget | None = None) -> list[Judgment]:
    judge.check(None)
    with judge.open(around(folder, budget=budget)) as judging:
        return judging(cases)


@pytest.mark.parametrize(("at", "value"), [(0, 7), (1, 0)])
def test_it_reads_a_prompt_and_its_reply_is_read(at: int, value: float, learned: list[Path], tmp_path: Path) -> None:
    [found] = ask(judge(learned[at]), [CASES[at]], tmp_path)
    assert (found.status, found.value, found.reply) == ("ok", value, REPLIES[at])
    renderer = Renderer(tokenizer())
    messages = [{"role": "user", "content": judge_prompt(CASES[at], 1000)}]
    assert found.prompt_tokens == len(renderer.prompt(messages))
    assert found.completion_tokens == len(renderer.response(messages, REPLIES[at]))


def test_what_it_has_judged_is_not_computed_again(learned: list[Path], tmp_path: Path) -> None:
    ask(judge(learned[0]), CASES[:1], tmp_path)
    [ledger] = tmp_path.iterdir()
    before = ledger.read_bytes()
    assert [found.value for found in ask(judge(learned[0]), [CASES[0]] * 2, tmp_path)] == [7, 7]
    assert ledger.read_bytes() == before


def test_a_verdict_is_weighed_by_the_models_own_probabilities(learned: list[Path], tmp_path: Path) -> None:
    """Of the three letters after the reply up to its verdict, from one forward pass over the whole text."""
    [found] = ask(judge(learned[1], "logprob"), CASES[1:], tmp_path)
    renderer = Renderer(tokenizer())
    messages = [{"role": "user", "content": judge_prompt(CASES[1], 1000)}]
    text = renderer.tokenizer.decode(renderer.prompt(messages)) + REPLIES[1][: -len("B]]")]
    with torch.no_grad():
        ids = renderer.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        chances = load_model(learned[1], "float32").eval()(ids).logits[0, -1].double().softmax(-1)
    of = {letter: float(chances[renderer.tokenizer.convert_tokens_to_ids(letter)]) for letter in "ABC"}
    assert found.value == pytest.approx((of["A"] + of["C"] / 2) / sum(of.values()), rel=1e-4)
    assert 0 < found.value < 0.5
    assert math.isfinite(found.value)


def test_its_tokens_are_paid_from_the_jobs_budget(learned: list[Path], tmp_path: Path) -> None:
    one = judge(learned[0], price=Price(prompt=1e6, completion=1e6))
    with pytest.raises(UserError, match=r"evaluation\.max_cost=3 is reached"):
        ask(one, CASES[:1], tmp_path, Budget(3))


def test_a_model_that_cannot_judge_gives_no_verdict(tmp_path: Path) -> None:
    found = ask(judge(policy_folder(tmp_path / "policy"), max_tokens=8), CASES, tmp_path / "judgments")
    assert {j.status for j in found} <= {"truncated", "unparsable"}
    assert {j.value for j in found} == {None}


def test_a_prompt_that_does_not_fit_is_said(tmp_path: Path) -> None:
    found = ask(judge(policy_folder(tmp_path / "policy"), max_length=64), CASES, tmp_path / "judgments")
    assert {(j.status, j.value) for j in found} == {("truncated", None)}
    assert "judge.max_length" in found[0].reply


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.path=.*no folder of a model"):
        judge(tmp_path).check(None)
    with pytest.raises(UserError, match=r"judge\.verdict=words"):
        judge(tmp_path, "words")
