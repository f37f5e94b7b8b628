"""Tasks of lm-evaluation-harness over the held-out prompts of the data at hand. Nothing is downloaded.

A task is a YAML file of lm-eval's own in `evaluation/lm_eval/`, over a local JSON Lines file that is written here: per
document the rendered `query`, its `choices`, and the index `gold` of the right one.
"""

import json
import logging
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError

TASKS = Path(__file__).parents[3] / "evaluation" / "lm_eval"
DISTRACTORS = 3


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises `UserError` for a task that has no file."""
    known = sorted(file.stem for file in TASKS.glob("*.yaml"))
    for task in tasks:
        if task not in known:
            raise UserError(f"evaluation.lm_eval={task}: no such task; {TASKS.name}/ holds {', '.join(known)}")


def run_tasks(
    tasks: Sequence[str],
    limit: int | None,
    model: Path,
    examples: Sequence[Example],
    renderer: Renderer,
    max_length: int,
    device: str,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Per task its metrics, as plain numbers, and how many `documents` they are over."""
    import yaml

    documents = choice_documents(examples[:limit], renderer, max_length, seed)
    if not tasks or not documents:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "documents.jsonl"
        file.write_text("\n".join(json.dumps(document) for document in documents))
        configs = [yaml.safe_load((TASKS / f"{task}.yaml").read_text()) for task in tasks]
        for config in configs:
            config["dataset_kwargs"] = {"data_files": {"test": str(file)}, "cache_dir": folder}
        results = _evaluate(configs, model, renderer.tokenizer, device)
    return {task: {**_numbers(metrics), "documents": len(documents)} for task, metrics in results.items()}


def choice_documents(
    examples: Sequence[Example], renderer: Renderer, max_length: int, seed: int
) -> list[dict[str, Any]]:
    """Which of four responses belongs to the prompt: its target, or targets of other prompts (of its category).

    A document whose query and choices do not fit into `max_length` tokens is left out: lm-eval would cut it silently.
    """
    rng = np.random.default_rng(seed)
    lengths = {e.target: len(renderer.response(e.prompt, e.target)) for e in examples}
    documents = []
    for example in examples:
        room = max_length - len(renderer.prompt(example.prompt))
        others = [e for e in examples if e.target != example.target and lengths[e.target] <= room]
        alike = {e.target for e in others if e.category == example.category}
        pool = sorted(alike or {e.target for e in others})
        if lengths[example.target] > room or not pool:
            continue
        choices = [example.target, *(pool[i] for i in rng.permutation(len(pool))[:DISTRACTORS])]
        order = rng.permutation(len(choices))
        query = renderer.tokenizer.decode(renderer.prompt(example.prompt))
        gold = int(np.flatnonzero(order == 0)[0])
        documents.append({"query": query, "choices": [choices[i] for i in order], "gold": gold})
    return documents


def _evaluate(configs: list[dict[str, Any]], model: Path, tokenizer: Any, device: str) -> dict[str, Any]:
    for name in ("lm_eval", "lm-eval", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    # The query is rendered already, special tokens and all.
    lm = HFLM(pretrained=str(model), tokenizer=tokenizer, device=device, batch_size=32, add_bos_token=False)
    with redirect_stderr(StringIO()):  # bars that no setting turns off; errors are raised, not printed
        found = simple_evaluate(
            model=lm,
            tasks=configs,
            task_manager=TaskManager(include_defaults=False),  # else it reads the thousands of files it comes with
            bootstrap_iters=0,
            log_samples=False,
            random_seed=None,  # it would reseed the whole process
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    return dict(found["results"])


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """lm-eval's results hold NumPy scalars, names and "N/A": the numbers of them."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float | np.number) and "stderr" not in name and name != "sample_len"
    }
