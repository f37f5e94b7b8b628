"""Compare lm-eval's tasks on vLLM with those on transformers."""

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
def test_run_tasks_on_vllm_equals_transformers(vllm_python: str, tmp_path: Path) -> None:
    policy = policy_folder(tmp_path / "policy", width=64)  # heads of 32 dimensions, vLLM's minimum
    tasks = ("target_choice", "target_generation")
    on_transformers = run_tasks(lm_eval(*tasks), policy, EXAMPLES, Renderer(tokenizer()), "cpu", seed=0)
    settings = lm_eval(*tasks, backend=backend(python=vllm_python))
    settings.check()
    on_vllm = run_tasks(settings, policy, EXAMPLES, Renderer(tokenizer()), "cpu", seed=0)
    assert 0 < on_vllm["target_choice"]["acc"] < 1
    assert on_vllm == on_transformers


@pytest.mark.vllm
def test_job_with_lm_eval_on_vllm_equals_transformers(vllm_python: str, tmp_path: Path) -> None:
    """The second job, on transformers, has everything cached except the evaluation."""
    tasks = (*TINY, "evaluation.lm_eval.tasks=[target_choice,target_generation]")
    name = "evaluation.lm_eval.backend"
    settings = (f"{name}.dtype=float32", f"{name}.gpu_memory_utilization=0.05", f"{name}.enforce_eager=true")
    on_vllm = run_train(*tasks, f"backend@{name}=vllm", f"{name}.python={vllm_python}", *settings, cwd=tmp_path)
    assert on_vllm.returncode == 0, on_vllm.stderr
    first = read_result(tmp_path / "out")
    on_transformers = run_train(*tasks, cwd=tmp_path)
    assert on_transformers.returncode == 0, on_transformers.stderr
    second = read_result(tmp_path / "out")
    assert {label for label, stage in stages(second).items() if not stage["cached"]} >= {"evaluate SFT"}
    assert stages(second)["align"]["cached"]
    for system in ("SFT", "Self-Contrast"):
        for task, metrics in first["lm_eval"][system].items():
            assert metrics == pytest.approx(second["lm_eval"][system][task])
        choice = first["lm_eval"][system]["target_choice"]
        assert choice["documents"] + choice["left_out"] == 16
