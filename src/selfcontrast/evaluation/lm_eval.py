"""Tasks of lm-evaluation-harness: its own by name, and those in `evaluation/lm_eval/` over the data at hand.

A file there is a task in lm-eval's format. One without `dataset_kwargs` is over the held-out prompts, which are
written here as a local JSON Lines file: per document the rendered `query`, and either its `choices` and the index
`gold` of the right one (multiple_choice) or its `target` (generate_until). Nothing is downloaded for these.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError

TASKS = Path(__file__).parents[3] / "evaluation" / "lm_eval"
DISTRACTORS = 3

Document = dict[str, Any]


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises `UserError` for a task that neither we nor lm-eval have, or whose data cannot be had."""
    for task in tasks:
        if not _file(task).exists():
            _check_theirs(task)


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
    """Per task its metrics, as plain numbers.

    Beside them: how many `documents` they are over, how many were `left_out` because they do not fit, and how many
    lm-eval has `truncated`; the examples shown before each (`fewshot`), and whether prompts were rendered with the
    `chat_template` (1 or 0).
    """
    ours = [task for task in tasks if _file(task).exists()]
    theirs = [task for task in tasks if task not in ours]
    found: dict[str, dict[str, float]] = {}
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        left_out: dict[str, int] = {}
        configs = []
        for task in ours:
            config, left_out[task] = _config(task, examples[:limit], renderer, max_length, seed, Path(folder))
            if config:
                configs.append(config)
        if configs:
            found |= _evaluate(configs, model, renderer.tokenizer, device, None, ours=True)
        for task in found:
            found[task]["left_out"] = left_out.get(task, 0)
        if theirs:
            found |= _evaluate(theirs, model, renderer.tokenizer, device, limit, ours=False)
    return found


def choice_documents(examples: Sequence[Example], renderer: Renderer, max_length: int, seed: int) -> list[Document]:
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


def generation_documents(
    examples: Sequence[Example], renderer: Renderer, max_length: int, max_new_tokens: int
) -> list[Document]:
    """Prompts with their targets, as many as can be answered: a target of at most `max_new_tokens` tokens, its end
    included, and a prompt that leaves room for so many in `max_length`."""
    documents = []
    for example in examples:
        prompt, target = renderer.example(example)
        if len(target) <= max_new_tokens and len(prompt) + max_new_tokens <= max_length:
            documents.append({"query": renderer.tokenizer.decode(prompt), "target": example.target.strip()})
    return documents


def _file(task: str) -> Path:
    return TASKS / f"{task}.yaml"


def _config(
    task: str, examples: Sequence[Example], renderer: Renderer, max_length: int, seed: int, folder: Path
) -> tuple[dict[str, Any] | None, int]:
    """The task of a file, its documents written to `folder`, and how many prompts gave none; None where all did not."""
    import yaml

    config: dict[str, Any] = yaml.safe_load(_file(task).read_text())
    if "dataset_kwargs" in config:
        return config, 0
    if config["output_type"] == "multiple_choice":
        documents = choice_documents(examples, renderer, max_length, seed)
    else:
        documents = generation_documents(examples, renderer, max_length, config["generation_kwargs"]["max_gen_toks"])
    if not documents:
        return None, len(examples)
    file = folder / f"{task}.jsonl"
    file.write_text("\n".join(json.dumps(document) for document in documents))
    config["dataset_kwargs"] = {"data_files": {"test": str(file)}, "cache_dir": str(folder)}
    return config, len(examples) - len(documents)


@cache
def _theirs() -> Any:
    """What lm-eval comes with: thousands of files, read only where one of them is asked for."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=True)


def _check_theirs(task: str) -> None:
    with _quiet():
        manager = _theirs()
        if task not in manager.all_tasks:
            known = ", ".join(sorted(file.stem for file in TASKS.glob("*.yaml")))
            raise UserError(
                f"evaluation.lm_eval={task}: no such task; {TASKS.name}/ holds {known}, and `lm_eval ls tasks` lists "
                "those of lm-eval"
            )
        try:
            manager.load([task])
        except Exception as error:  # of whatever library the task's data come through
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"evaluation.lm_eval={task}: its data cannot be had ({first}): download them once where there is a "
                f"network (HF_HOME keeps them), or write a task file with dataset_kwargs.data_files in {TASKS.name}/"
            ) from error


def _evaluate(
    tasks: Sequence[Any], model: Path, tokenizer: Any, device: str, limit: int | None, ours: bool
) -> dict[str, dict[str, float]]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # A query of ours is rendered already, special tokens and all; theirs get the template, which writes them too.
    lm = HFLM(pretrained=str(model), tokenizer=tokenizer, device=device, batch_size=32, add_bos_token=False)
    found = simple_evaluate(
        model=lm,
        tasks=list(tasks),
        task_manager=TaskManager(include_defaults=False) if ours else _theirs(),
        apply_chat_template=not ours,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        random_seed=None,  # it would reseed the whole process
        numpy_random_seed=None,
        torch_random_seed=None,
    )
    return {
        task: {
            **_numbers(metrics),
            "documents": _documents(found, task),
            "truncated": _truncated(lm, found["samples"].get(task, [])),
            "fewshot": int(found["n-shot"].get(task) or 0),
            "chat_template": 1,
        }
        for task, metrics in found["results"].items()
    }


def _documents(found: dict[str, Any], task: str) -> int:
    """Of a group those of all its tasks."""
    parts = found.get("group_subtasks", {}).get(task) or [task]
    return sum(found["n-samples"][part]["effective"] for part in parts if part in found["n-samples"])


def _truncated(lm: Any, samples: Sequence[dict[str, Any]]) -> int:
    """How many documents hold a request that is longer than the model reads, whose beginning lm-eval cuts off."""
    return len({sample["doc_id"] for sample in samples if any(_cut(lm, a) for a in sample["arguments"])})


def _cut(lm: Any, arguments: Sequence[Any]) -> bool:
    if len(arguments) < 2:  # a text that is scored in windows, whole
        return False
    context, rest = arguments[0], arguments[1]
    if isinstance(rest, dict):
        return bool(len(lm.tok_encode(context)) + rest.get("max_gen_toks", lm.max_gen_toks) > lm.max_length)
    return bool(sum(map(len, lm._encode_pair(context, rest))) > lm.max_length + 1)  # the last token is not read


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loggers' and bars' lines, which no setting turns off; errors are raised, not printed."""
    import datasets

    for name in ("lm_eval", "lm-eval", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with redirect_stderr(StringIO()):
        yield


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """lm-eval's results hold NumPy scalars, names and "N/A": the numbers of them."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float | np.number) and "stderr" not in name and name != "sample_len"
    }
