"""Define requests for tests of vLLM, and compute transformers' answers to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.generators.hf import HF
from selfcontrast.generators.vllm import VLLM
from tiny import tokenizer

LENGTH = 128
QUESTIONS = [
    "cat",
    "what is the name of the cat?",
    "Paris",
    "a dog and a cat sat on the mat in France " * 4,
    "",
    "naïve 猫が好き 🐈‍⬛ é",
    "the mat " * 55,
]
RENDERER = Renderer(tokenizer())
REQUESTS = [Request(f"q{i}", RENDERER.prompt([{"role": "user", "content": q}])) for i, q in enumerate(QUESTIONS)]
FREE = Decoding(samples=4, temperature=1.0, top_p=1.0, max_new_tokens=16, max_length=LENGTH)
GREEDY = Decoding(samples=1, temperature=0.0, top_p=1.0, max_new_tokens=16, max_length=LENGTH)


def backend(**changes: Any) -> VLLM:
    """Return vLLM's settings for a tiny policy in float32, with the fastest start."""
    settings: dict[str, Any] = {
        "dtype": "float32",
        "adapter": None,
        "python": None,
        "max_length": LENGTH,
        "tensor_parallel_size": 1,
        "data_parallel_size": 1,
        "gpu_memory_utilization": 0.05,
        "enforce_eager": True,
    }
    return VLLM(**{**settings, **changes})


def hf_answers(policy: Path, decoding: Decoding = GREEDY) -> list[Candidate]:
    """Return transformers' answers to `REQUESTS`."""
    with HF("float32", 1).open(policy, "cpu") as sample:
        return sample(REQUESTS, decoding, 0)


def same(actual: Sequence[Candidate], expected: Sequence[Candidate]) -> bool:
    """Return whether responses are equal and log-probabilities differ only by rounding."""
    close = [{**vars(c), "log_prob": pytest.approx(c.log_prob, abs=1e-3)} for c in expected]
    return [vars(c) for c in actual] == close
