"""Compare vLLM with transformers on a real model and tokenizer (`make test-vllm`)."""

from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data.candidates import Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.generators.hf import HF
from smol import CAPITAL, SMOLLM2, smollm2_folder
from vllm_cases import backend, same

GREEDY = Decoding(samples=1, temperature=0.0, top_p=1.0, max_new_tokens=24, max_length=256)
CHAT: Any = [*CAPITAL, {"role": "assistant", "content": "It is Paris."}, {"role": "user", "content": "And 12 + 30?"}]


@pytest.mark.vllm
def test_greedy_answers_equal_transformers(vllm_python: str, tmp_path: Path) -> None:
    policy = smollm2_folder(tmp_path)
    renderer = Renderer(SMOLLM2.tokenizer())
    requests = [Request(f"q{i}", renderer.prompt(messages)) for i, messages in enumerate((CAPITAL, CHAT))]
    with HF("float32", 2).open(policy, "cpu") as sample:
        expected = sample(requests, GREEDY, 0)
    with backend(python=vllm_python, max_length=256, gpu_memory_utilization=0.1).open(policy, "cpu") as sample:
        results = sample(requests, GREEDY, 0)
    assert "Paris" in results[0].text
    assert same(results, expected)
