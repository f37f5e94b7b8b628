"""lm-eval's tasks on vLLM give the numbers that they give on transformers."""

from pathlib import Path

import pytest

from benchmark_cases import lm_eval
from jobs import TINY, read_result, run_train, stages
from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation.lm_eval_run import run_tasks
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


@pytest.mark.vllm
def test_a_job_asks_its_policies_in_vllm(vllm_python: str, tmp_path: Path) -> None:
    """Run with another interpreter's vLLM, then with transformers: everything but the evaluation is cached."""
    tasks = (*TINY, "evaluation.lm_eval.tasks=[target_choice,target_generation]")
    name = "evaluation.lm_eval.backend"
    fine = (f"{name}.dtype=float32", f"{name}.gpu_memory_utilization=0.05", f"{name}.enforce_eager=true")
    there = run_train(*tasks, f"backend@{name}=vllm", f"{name}.python={vllm_python}", *fine, cwd=tmp_path)
    assert there.returncode == 0, there.stderr
    first = read_result(tmp_path / "out")
    here = run_train(*tasks, cwd=tmp_path)
    assert here.returncode == 0, here.stderr
    second = read_result(tmp_path / "out")
    assert {label for label, stage in stages(second).items() if not stage["cached"]} >= {"evaluate SFT"}
    assert stages(second)["align"]["cached"]
    for system in ("SFT", "Self-Contrast"):
        for task, metrics in first["lm_eval"][system].items():
            assert metrics == pytest.approx(second["lm_eval"][system][task])
        of = first["lm_eval"][system]["target_choice"]
        assert of["documents"] + of["left_out"] == 16
