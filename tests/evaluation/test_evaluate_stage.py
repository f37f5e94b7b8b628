"""Test the evaluate stage, from answers to files, on a real policy with random weights."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmark_cases import lm_eval
from selfcontrast.data.example import Example, Split, Verifier
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.evaluation.contamination import Contamination
from selfcontrast.evaluation.evaluate import ANSWERS, LIKELIHOOD, LM_EVAL, Evaluation, Policy, evaluate
from selfcontrast.evaluation.likelihood import target_log_probs
from selfcontrast.filters.encode import Embeddings, Encode, LexicalEncoder
from selfcontrast.generators.backend import Responder
from selfcontrast.generators.hf import HF
from tiny import example, llama, policy_folder, tokenizer

EXAMPLES = [
    example("a", "what is the cat?", "a cat", category="cats"),
    example("b", "and Paris?", "Paris is in France", category="places"),
    example("c", "unused", "a dog and a cat", category="cats", turns=["the dog?", "and the cat?"]),
]
DECODINGS = [{"name": "T=1", "temperature": 1.0, "samples": 2}, {"name": "greedy", "temperature": 0.0, "samples": 1}]


def settings(**changes: Any) -> Evaluation:
    defaults: dict[str, Any] = {
        "split": "test",
        "prompts": None,
        "decodings": DECODINGS,
        "top_p": 1.0,
        "max_new_tokens": 6,
        "max_length": 100,
        "lm_eval": lm_eval(),
        "checkpoints": 0,
        "max_cost": None,
        "judgments_shown": None,
        "contamination": Contamination(8, 0.8, None, LexicalEncoder("word", 1, 1, 16)),
        "seed": 0,
        "confidence": 0.95,
        "n_bootstrap": 100,
        "backend": HF("float32", 4),
        "benchmarks": {},
    }
    return Evaluation(**{**defaults, **changes})


@dataclass(frozen=True)
class LengthVerifier:
    """A verifier whose score depends on the example, the text and the turn."""

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        return (len(example.target) + len(response) / 1000 + 100 * (turn + 1)) / 1000


@dataclass(frozen=True)
class ByteEncoder:
    """An encoder whose unit vectors are computed from the texts' bytes."""

    def check(self) -> None: ...

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        yield self.encode

    def encode(self, texts: Sequence[str]) -> Embeddings:
        assert len(set(texts)) == len(texts)
        angles = np.array([sum(text.encode()) % 100 for text in texts], dtype=np.float32)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))


def run_evaluate(folder: Path, policy: Path, verifier: Verifier | None) -> dict[str, Any]:
    responder = Responder(HF("float32", 4), Local(2, 1), "cpu")
    subject = Policy("SFT", policy, "float32", "cpu")
    return evaluate(folder, settings(), subject, EXAMPLES, verifier, ByteEncoder(), responder)


def test_evaluate_grades_answers_with_the_verifier(tmp_path: Path, policy: Path) -> None:
    summary = run_evaluate(tmp_path, policy, LengthVerifier())
    answers = pd.read_parquet(tmp_path / ANSWERS)
    assert "similarity" not in answers
    keys = list(zip(answers["decoding"], answers["id"], answers["turn"], answers["sample"], strict=True))
    turns = [("a", 0), ("b", 0), ("c", 0), ("c", 1)]
    assert sorted(keys) == sorted(
        (decoding, name, turn, s)
        for decoding, samples in (("T=1", 2), ("greedy", 1))
        for name, turn in turns
        for s in range(samples)
    )
    by_id = {e.id: e for e in EXAMPLES}
    for row in answers.to_dict("records"):
        assert row["score"] == LengthVerifier().score(by_id[row["id"]], row["text"], row["turn"])
        assert row["category"] == by_id[row["id"]].category
    assert summary == {"prompts": 3, "answers": 12, "tokens": int(answers["tokens"].sum())}
    assert json.loads((tmp_path / LM_EVAL).read_text()) == {}


@dataclass(frozen=True)
class InvalidVerifier:
    """A verifier that gives one example an invalid score."""

    value: float

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        return self.value if example.id == "b" else 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.1])
def test_evaluate_invalid_score_is_rejected_with_its_example(value: float, tmp_path: Path, policy: Path) -> None:
    """The stage leaves no file that a later comparison could read."""
    with pytest.raises(UserError, match=r"verifier's score .*'b' is .* 3 of 12 "):
        run_evaluate(tmp_path, policy, InvalidVerifier(value))
    assert not (tmp_path / ANSWERS).exists()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (float("nan"), r"model\.norm\.weight .*NaN"),
        (3e38, r"probabilities after prompt 'a' are NaN"),  # finite, but the logits overflow
    ],
)
def test_evaluate_policy_with_nan_is_rejected(weight: float, message: str, tmp_path: Path) -> None:
    """An earlier version summed the log-probabilities of a diverged policy with NaN weights as 0."""
    folder = policy_folder(tmp_path / "policy")
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[:] = weight
    model.save_pretrained(folder)
    (tmp_path / "scores").mkdir()
    with pytest.raises(UserError, match=message):
        run_evaluate(tmp_path / "scores", folder, LengthVerifier())


def test_evaluate_without_a_verifier_scores_similarity_to_the_target(tmp_path: Path, policy: Path) -> None:
    run_evaluate(tmp_path, policy, None)
    answers = pd.read_parquet(tmp_path / ANSWERS)
    assert "score" not in answers
    targets = {e.id: e.target for e in EXAMPLES}
    for row in answers.to_dict("records"):
        if row["text"] == targets[row["id"]]:
            continue
        text, target = ByteEncoder().encode([row["text"], targets[row["id"]]])
        assert row["similarity"] == pytest.approx(float(text @ target), abs=1e-6)


def test_evaluate_likelihood_of_targets_equals_a_forward_pass(tmp_path: Path, policy: Path) -> None:
    run_evaluate(tmp_path, policy, LengthVerifier())
    rows = pd.read_parquet(tmp_path / LIKELIHOOD).to_dict("records")
    renderer, model = Renderer(tokenizer()), llama()
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    for row, source in zip(rows, EXAMPLES, strict=True):
        prompt, target = renderer.example(source)
        with torch.no_grad():
            loss = model(torch.tensor([prompt + target]), labels=torch.tensor([[-100] * len(prompt) + target])).loss
        assert row["tokens"] == len(target)
        assert row["log_prob"] / row["tokens"] == pytest.approx(-loss.item(), abs=1e-4)


def test_target_log_probs_leaves_out_long_examples(policy: Path) -> None:
    renderer = Renderer(tokenizer())
    bound = max(sum(map(len, renderer.example(e))) for e in EXAMPLES)
    short = [e.id for e in EXAMPLES if sum(map(len, renderer.example(e))) < bound]
    assert 0 < len(short) < 3
    rows = target_log_probs(policy, "float32", renderer, EXAMPLES, "cpu", bound - 1)
    assert [row["id"] for row in rows] == short
    assert len(target_log_probs(policy, "float32", renderer, EXAMPLES, "cpu", bound)) == 3


def test_choose_spaces_prompts_evenly() -> None:
    examples: list[Example] = [example(str(i), "?", "!") for i in range(10)]
    splits: dict[Split, list[Example]] = {"train": [], "validation": examples[:4], "test": examples}
    assert [e.id for e in settings(prompts=4).choose(splits)] == ["0", "3", "6", "9"]
    assert [e.id for e in settings(prompts=2, split="validation").choose(splits)] == ["0", "3"]
    assert settings(prompts=10).choose(splits) == settings().choose(splits) == examples
    for count in range(2, 11):
        assert len({e.id for e in settings(prompts=count).choose(splits)}) == count


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "train"},
        {"decodings": []},
        {"decodings": [{"name": "a", "samples": 1}]},
        {"decodings": [DECODINGS[0], DECODINGS[0]]},
        {"prompts": 1},
        {"confidence": 1.0},
        {"n_bootstrap": 9},
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.{next(iter(wrong))}"):
        settings(**wrong)
