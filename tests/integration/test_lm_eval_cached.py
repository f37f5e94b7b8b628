"""Run one of lm-eval's own tasks offline on a cached data set, with few-shot examples, and get lm-eval's numbers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets.packaged_modules.json.json import Json

from benchmark_cases import lm_eval
from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation.lm_eval_run import run_tasks
from tiny import policy_folder, tokenizer

pytestmark = pytest.mark.slow

TASK, HUB, CONFIG = "arc_easy", "allenai/ai2_arc", "ARC-Easy"
WORDS = ["cat", "dog", "Paris", "the mat", "a name", "France", "sat on", "and"]


def question(i: int) -> dict[str, object]:
    choices = [WORDS[(i + k) % 8] for k in range(3)]
    text = f"what is {WORDS[i % 8]}{i}?"
    return {"id": str(i), "question": text, "answerKey": "ABC"[i % 3], "choices": {"text": choices, "label": [*"ABC"]}}


def write_cache(folder: Path) -> Path:
    """Write the cache that `datasets` would make of a downloaded data set, with the rows of `question`. Return it."""
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(question(i)) for i in range(40)))
    files = {split: [str(folder / "rows.jsonl")] for split in ("train", "validation", "test")}
    builder = Json(cache_dir=str(folder), dataset_name="ai2_arc", config_name=CONFIG, hash="0" * 40, data_files=files)
    builder.download_and_prepare()
    shutil.copytree(builder.cache_dir, folder / "cache" / HUB.replace("/", "___") / CONFIG / "0.0.0" / ("0" * 40))
    return folder / "cache"


@pytest.mark.parametrize("fewshot", [0, 2])
@pytest.mark.parametrize("chat", [False, True])
def test_run_tasks_on_a_cached_data_set_equals_lm_evals_command(
    fewshot: int, chat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, cache = policy_folder(tmp_path / "policy"), write_cache(tmp_path)
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", TASK, "--num_fewshot", str(fewshot)),
        *("--model_args", f"pretrained={policy}{',add_bos_token=False' if chat else ''}", "--device", "cpu"),
        *("--output_path", str(tmp_path / "out"), "--limit", "24", "--batch_size", "5"),
        *(["--apply_chat_template"] if chat else []),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    (file,) = (tmp_path / "out").rglob("results_*.json")
    expected = json.loads(file.read_text())["results"][TASK]

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    settings = lm_eval(TASK, limit=24, fewshot=fewshot, apply_chat_template=chat)
    settings.check()
    metrics = run_tasks(settings, policy, [], Renderer(tokenizer()), "cpu", seed=0)[TASK]
    for metric in ("acc", "acc_norm"):
        assert metrics[metric] == pytest.approx(expected[f"{metric},none"], abs=1e-12)
    assert 0 < metrics["acc"] < 1
    assert (metrics["documents"], metrics["fewshot"], metrics["chat_template"]) == (24, fewshot, int(chat))
