"""The task files in `evaluation/lm_eval/`, and the tasks that come with lm-evaluation-harness.

A task file is in lm-eval's format. Without `dataset_kwargs`, the task uses the held-out prompts, which are written to a
local Parquet file. A document holds the rendered `query`, and either its `choices` and the index `gold` of the right
one (multiple_choice) or its `target` (generate_until). A task on held-out prompts downloads nothing.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.lm_eval_documents import choice_documents, generation_documents
from selfcontrast.files import EVALUATION

TASKS = EVALUATION / "lm_eval"
FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffixes of local files, and the names that `datasets` has for their formats."""

EXAMPLE_SPLITS = ("training_split", "validation_split", "fewshot_split", "fewshot_config")
"""Keys of a task's config that name a source of few-shot examples."""

HUB_ONLY = ("dataset_name", *EXAMPLE_SPLITS)
"""Keys of a task's config that do not apply to a local file."""


def task_file(task: str) -> Path:
    """Return the path of the task's file in `evaluation/lm_eval/`; the file need not exist."""
    return TASKS / f"{task}.yaml"


def has_file(task: str) -> bool:
    """Return whether the task has a file in `evaluation/lm_eval/`."""
    return task_file(task).exists()


def tasks_with_files() -> list[str]:
    """List the tasks that have a file in `evaluation/lm_eval/`."""
    return sorted(file.stem for file in TASKS.glob("*.yaml"))


def read_task(task: str) -> dict[str, Any]:
    """Read a task file; raise `UserError` if it is not a YAML mapping."""
    import yaml

    try:
        return dict(yaml.safe_load(task_file(task).read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"evaluation.lm_eval.tasks={task}: {task_file(task).name} cannot be read ({first}). "
            "Write it in lm-eval's format, as YAML without tags."
        ) from error


def uses_held_out_prompts(task: str) -> bool:
    """Return whether the task uses the held-out prompts: it has a file without `dataset_kwargs`."""
    return has_file(task) and "dataset_kwargs" not in read_task(task)


def task_hash(task: str) -> str:
    """Hash a task file together with the local files that hold its data."""
    content = hashlib.sha256(task_file(task).read_bytes())
    data_files = (read_task(task).get("dataset_kwargs") or {}).get("data_files") or {}
    for group in data_files.values() if isinstance(data_files, dict) else [data_files]:
        for path in [group] if isinstance(group, str) else group:
            if Path(path).is_file():
                content.update(Path(path).read_bytes())
    return content.hexdigest()


def write_documents(
    task: str, examples: Sequence[Example], renderer: Renderer, max_length: int, seed: int, folder: Path
) -> tuple[dict[str, Any] | None, int]:
    """Write a task's documents, made of `examples`, to `folder`.

    Returns:
        The task's config, which names the written file (None if no prompt fits), and how many prompts do not fit.
    """
    config = read_task(task)
    if config["output_type"] == "multiple_choice":
        documents = choice_documents(examples, renderer, max_length, seed)
    else:
        documents = generation_documents(examples, renderer, max_length, config["generation_kwargs"]["max_gen_toks"])
    if not documents:
        return None, len(examples)
    # Parquet has typed columns. From JSON, a column of texts that look like dates would be read as dates.
    file, config["dataset_path"] = folder / f"{task}.parquet", "parquet"
    pq.write_table(pa.Table.from_pylist(documents), file)
    config["dataset_kwargs"] = {"data_files": {"test": str(file)}, "cache_dir": str(folder)}
    return config, len(examples) - len(documents)


@cache
def builtin_tasks() -> Any:
    """Return lm-eval's own tasks as a TaskManager. It reads thousands of files: call this only if needed."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=True)


def builtin_configs(name: str) -> list[dict[str, Any]]:
    """Return the config of one of lm-eval's own tasks, or of each task in a group or tag, without loading data."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if (entry := builtin_tasks().task_index.get(name)) is None:
        return []
    if entry.kind.name == "TAG":
        members: Any = sorted(entry.tags)
    else:
        config = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else (entry.cfg or {})
        members = config.get("task")
        if not isinstance(members, list):
            return [config]
    names = [member if isinstance(member, str) else member.get("task", member.get("group")) for member in members]
    return [config for member in names if isinstance(member, str) for config in builtin_configs(member)]


def with_local_documents(task: str, path: str) -> dict[str, Any]:
    """Return the config of one of lm-eval's own tasks for the documents in a local file, without few-shot examples."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = builtin_tasks().task_index[task]
    config = load_yaml(entry.yaml_path) if entry.kind.name == "TASK" and entry.yaml_path else {}
    split = config.get("test_split") or config.get("validation_split")
    if not split:
        raise UserError(
            f"evaluation.lm_eval.local.{task}: {task} has no test or validation documents of its own. "
            "If it is a group of tasks, name each task instead."
        )
    config = {key: value for key, value in config.items() if key not in HUB_ONLY}
    config["num_fewshot"] = 0  # else lm-eval takes examples from the test documents, even the question itself
    files = {"data_files": {split: path}}
    return {**config, "test_split": split, "dataset_path": FORMATS[Path(path).suffix], "dataset_kwargs": files}


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Hide the log lines and progress bars of lm-eval and `datasets`. No setting turns off all of them.

    Errors are raised, not printed, so none is lost.
    """
    import datasets

    for name in ("lm_eval", "lm-eval", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with redirect_stderr(StringIO()):
        yield
