"""lm-eval's tasks on vLLM give the numbers that they give on transformers."""

from pathlib import Path

import pytest

from measuring import lm_eval
from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation.lm_eval import run_tasks
from tiny import example, policy_folder, tokenizer
from vllm_cases import backend

WORDS = ["cat", "dog", "Paris", "the mat", "a name", "France", "sat on", "and"]
EXAMPLES = [example(f"e{i}", f"what is {i}?", f"it is {WORDS[i * 3 % 8]} {i % 7}") for i in range(24)]


@pytest.mark.vllm
def test_vllm_and_transformers_agree(vllm_python: str, tmp_path: Path) -> None:
    policy = policy_folder(tmp_path / "policy", width=64)  # heads of 32 dimensions, the fewest that vLLM has
    tasks = ("target_choice", "target_generation")
    here = run_tasks(lm_eval(*tasks), policy, EXAMPLES, Renderer(tokenizer()), "cpu", seed=0)
    settings = lm_eval(*tasks, backend=backend(python=vllm_python))
    settings.check()
    there = run_tasks(settings, policy, EXAMPLES, Renderer(tokenizer()), "cpu", seed=0)
    assert 0 < there["target_choice"]["acc"] < 1
    assert there == here
