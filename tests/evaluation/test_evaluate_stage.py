"""One policy's evaluation, from answers to files, on a real policy of random weights."""

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

from measuring import lm_eval
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
WAYS = [{"name": "T=1", "temperature": 1.0, "samples": 2}, {"name": "greedy", "temperature": 0.0, "samples": 1}]


def settings(**changes: Any) -> Evaluation:
    fine: dict[str, Any] = {
        "split": "test",
        "prompts": None,
        "decodings": WAYS,
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
    return Evaluation(**{**fine, **changes})


@dataclass(frozen=True)
class Lengths:
    """Grades by what the grade must depend on: the example, the text and the turn."""

    def score(self, one: Example, response: str, turn: int = -1) -> float:
        return (len(one.target) + len(response) / 1000 + 100 * (turn + 1)) / 1000


@dataclass(frozen=True)
class Directions:
    """A vector of length one per text, from the text alone."""

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


def evaluated(folder: Path, policy: Path, verifier: Verifier | None) -> dict[str, Any]:
    responder = Responder(HF("float32", 4), Local(2, 1), "cpu")
    measured = Policy("SFT", policy, "float32", "cpu")
    return evaluate(folder, settings(), measured, EXAMPLES, verifier, Directions(), responder)


def test_answers_are_graded_by_the_verifier(tmp_path: Path, policy: Path) -> None:
    summary = evaluated(tmp_path, policy, Lengths())
    answers = pd.read_parquet(tmp_path / ANSWERS)
    assert "similarity" not in answers
    keys = list(zip(answers["decoding"], answers["id"], answers["turn"], answers["sample"], strict=True))
    turns = [("a", 0), ("b", 0), ("c", 0), ("c", 1)]
    assert sorted(keys) == sorted(
        (way, name, turn, s)
        for way, samples in (("T=1", 2), ("greedy", 1))
        for name, turn in turns
        for s in range(samples)
    )
    by_id = {e.id: e for e in EXAMPLES}
    for row in answers.to_dict("records"):
        assert row["score"] == Lengths().score(by_id[row["id"]], row["text"], row["turn"])
        assert row["category"] == by_id[row["id"]].category
    assert summary == {"prompts": 3, "answers": 12, "tokens": int(answers["tokens"].sum())}
    assert json.loads((tmp_path / LM_EVAL).read_text()) == {}


@dataclass(frozen=True)
class Broken:
    """Grades one example with a value that is no score."""

    value: float

    def score(self, one: Example, response: str, turn: int = -1) -> float:
        return self.value if one.id == "b" else 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.1])
def test_a_score_that_is_no_number_is_refused_with_its_example(value: float, tmp_path: Path, policy: Path) -> None:
    """And nothing is stored that a later comparison could trip over."""
    with pytest.raises(UserError, match=r"verifier's score .* to example 'b' is .* \(3 of 12 are so\)"):
        evaluated(tmp_path, policy, Broken(value))
    assert not (tmp_path / ANSWERS).exists()


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (float("nan"), r"the weight model\.norm\.weight has values that are NaN or infinite: its training diverged"),
        (3e38, r"probabilities after prompt 'a' are NaN"),  # finite, but not what is computed with it
    ],
)
def test_a_policy_that_gives_nan_is_refused(weight: float, said: str, tmp_path: Path) -> None:
    """A diverged policy has NaN weights; its log-probabilities were summed as 0."""
    folder = policy_folder(tmp_path / "policy")
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[:] = weight
    model.save_pretrained(folder)
    (tmp_path / "scores").mkdir()
    with pytest.raises(UserError, match=said):
        evaluated(tmp_path / "scores", folder, Lengths())


def test_without_a_verifier_answers_carry_their_similarity_to_the_target(tmp_path: Path, policy: Path) -> None:
    evaluated(tmp_path, policy, None)
    answers = pd.read_parquet(tmp_path / ANSWERS)
    assert "score" not in answers
    targets = {e.id: e.target for e in EXAMPLES}
    for row in answers.to_dict("records"):
        if row["text"] == targets[row["id"]]:
            continue
        text, target = Directions().encode([row["text"], targets[row["id"]]])
        assert row["similarity"] == pytest.approx(float(text @ target), abs=1e-6)


def test_the_likelihood_of_targets_is_a_forward_passes(tmp_path: Path, policy: Path) -> None:
    evaluated(tmp_path, policy, Lengths())
    rows = pd.read_parquet(tmp_path / LIKELIHOOD).to_dict("records")
    renderer, model = Renderer(tokenizer()), llama()
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    for row, one in zip(rows, EXAMPLES, strict=True):
        prompt, target = renderer.example(one)
        with torch.no_grad():
            loss = model(torch.tensor([prompt + target]), labels=torch.tensor([[-100] * len(prompt) + target])).loss
        assert row["tokens"] == len(target)
        assert row["log_prob"] / row["tokens"] == pytest.approx(-loss.item(), abs=1e-4)


def test_targets_that_do_not_fit_have_no_likelihood(policy: Path) -> None:
    renderer = Renderer(tokenizer())
    bound = max(sum(map(len, renderer.example(e))) for e in EXAMPLES)
    fitting = [e.id for e in EXAMPLES if sum(map(len, renderer.example(e))) < bound]
    assert 0 < len(fitting) < 3
    rows = target_log_probs(policy, "float32", renderer, EXAMPLES, "cpu", bound - 1)
    assert [row["id"] for row in rows] == fitting
    assert len(target_log_probs(policy, "float32", renderer, EXAMPLES, "cpu", bound)) == 3


def test_prompts_are_spread_evenly_over_the_split() -> None:
    every: list[Example] = [example(str(i), "?", "!") for i in range(10)]
    splits: dict[Split, list[Example]] = {"train": [], "validation": every[:4], "test": every}
    assert [e.id for e in settings(prompts=4).choose(splits)] == ["0", "3", "6", "9"]
    assert [e.id for e in settings(prompts=2, split="validation").choose(splits)] == ["0", "3"]
    assert settings(prompts=10).choose(splits) == settings().choose(splits) == every
    for count in range(2, 11):
        assert len({e.id for e in settings(prompts=count).choose(splits)}) == count


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "train"},
        {"decodings": []},
        {"decodings": [{"name": "a", "samples": 1}]},
        {"decodings": [WAYS[0], WAYS[0]]},
        {"prompts": 1},
        {"confidence": 1.0},
        {"n_bootstrap": 9},
    ],
    ids=str,
)
def test_an_evaluation_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.{next(iter(wrong))}"):
        settings(**wrong)
