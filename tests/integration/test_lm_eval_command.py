"""Run lm-eval's own command on this package's documents and model: both give the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmark_cases import lm_eval
from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation.lm_eval_documents import choice_documents, generation_documents
from selfcontrast.evaluation.lm_eval_run import run_tasks
from selfcontrast.evaluation.lm_eval_tasks import TASKS
from selfcontrast.models.loading import save_policy
from tiny import example, tokenizer, train_to_overfit

pytestmark = pytest.mark.slow

WORDS = ["cat", "dog", "Paris", "the mat", "a name", "France", "sat on", "and"]
EXAMPLES = [example(f"e{i}", f"what is {i}?", f"it is {WORDS[i * 3 % 8]} {i % 7}") for i in range(24)]


def test_run_tasks_on_own_documents_equals_lm_evals_command(tmp_path: Path) -> None:
    renderer, policy = Renderer(tokenizer()), tmp_path / "policy"
    save_policy(policy, train_to_overfit(EXAMPLES[::2]), renderer.tokenizer, "")
    max_tokens = yaml.safe_load((TASKS / "target_generation.yaml").read_text())["generation_kwargs"]["max_gen_toks"]
    documents = {
        "target_choice": choice_documents(EXAMPLES, renderer, 120, seed=0),
        "target_generation": generation_documents(EXAMPLES, renderer, 120, max_tokens),
    }
    (tmp_path / "tasks").mkdir()
    for task, rows in documents.items():
        (tmp_path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = yaml.safe_load((TASKS / f"{task}.yaml").read_text())
        config["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / f"{task}.jsonl")}}
        (tmp_path / "tasks" / f"{task}.yaml").write_text(yaml.safe_dump(config))
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", *documents),
        *("--model_args", f"pretrained={policy},add_bos_token=False", "--device", "cpu", "--batch_size", "7"),
        *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    (file,) = (tmp_path / "out").rglob("results_*.json")
    expected = json.loads(file.read_text())["results"]
    results = run_tasks(lm_eval(*documents), policy, EXAMPLES, renderer, "cpu", seed=0)
    for task, metrics in (("target_choice", ("acc", "acc_norm")), ("target_generation", ("exact_match",))):
        for metric in metrics:
            assert results[task][metric] == pytest.approx(expected[task][f"{metric},none"], abs=1e-12), (task, metric)
    assert 0 < results["target_choice"]["acc"] < 1
    assert 0 < results["target_generation"]["exact_match"] < 1
    (samples,) = (tmp_path / "out").rglob("samples_target_generation_*.jsonl")
    queries = [json.loads(line)["arguments"]["gen_args_0"]["arg_0"] for line in samples.read_text().splitlines()]
    assert queries == [document["query"] for document in documents["target_generation"]]
