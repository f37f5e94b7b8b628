"""Run tasks of lm-evaluation-harness on a model and read the results as plain numbers."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation.lm_eval import LmEval
from selfcontrast.evaluation.lm_eval_tasks import (
    builtin_tasks,
    has_file,
    read_task,
    silence_libraries,
    uses_held_out_prompts,
    with_local_documents,
    write_documents,
)
from selfcontrast.evaluation.statistics.task_metrics import STDERR
from selfcontrast.generators.hf import HF
from selfcontrast.generators.vllm import VLLM

log = logging.getLogger(__name__)

BOOTSTRAPS = 1000  # resamples for the standard errors of metrics that are not means


def run_tasks(
    settings: LmEval, model: Path, examples: Sequence[Example], renderer: Renderer, device: str, seed: int
) -> dict[str, dict[str, float]]:
    """Run the tasks and return the metrics of each, with their standard errors ("acc stderr"), as plain numbers.

    Each task's metrics include these counts:
        documents: documents that were scored.
        left_out: prompts that do not fit into `max_length`.
        truncated: documents whose beginning lm-eval cut off.
        fewshot: examples shown before each document.
        chat_template: 1 if prompts were rendered with the chat template, else 0.
    """
    held_out = [task for task in settings.tasks if uses_held_out_prompts(task)]
    others = [_task_or_config(task, settings) for task in settings.tasks if task not in held_out]
    results: dict[str, dict[str, float]] = {}
    with silence_libraries(), _single_process(), tempfile.TemporaryDirectory() as folder:
        left_out: dict[str, int] = {}
        configs = []
        for task in held_out:
            limited = examples[: settings.limit]
            config, left_out[task] = write_documents(task, limited, renderer, settings.max_length, seed, Path(folder))
            if config:
                configs.append(config)
            else:
                log.warning("lm-eval: task %s is skipped: none of its %d documents fits", task, left_out[task])
        if configs:
            results |= _evaluate(configs, settings, model, renderer, device, rendered=True)
        if others:
            results |= _evaluate(others, settings, model, renderer, device, rendered=False)
    for task in results:
        results[task]["left_out"] = left_out.get(task, 0)
    return results


def _task_or_config(task: str, settings: LmEval) -> Any:
    """Return a config for a task with a file or with local documents, and the name of any other task."""
    if has_file(task):
        return read_task(task)
    return with_local_documents(task, settings.local[task]) if task in settings.local else task


def _evaluate(
    tasks: Sequence[Any], settings: LmEval, model: Path, renderer: Renderer, device: str, rendered: bool
) -> dict[str, dict[str, float]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    template = settings.apply_chat_template and not rendered
    by_name = any(isinstance(task, str) for task in tasks)
    # A rendered query already holds its special tokens, whether this package or lm-eval rendered it.
    with open_lm(settings, model, renderer, device, special_tokens=not (rendered or template)) as lm:
        lm.tokenizer.chat_template = renderer.tokenizer.chat_template  # it does not insert today's date
        results = simple_evaluate(
            model=lm,
            tasks=list(tasks),
            task_manager=builtin_tasks() if by_name else TaskManager(include_defaults=False),
            num_fewshot=None if rendered else settings.fewshot,
            apply_chat_template=template,
            limit=None if rendered else settings.limit,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=True,
            confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
            random_seed=None,  # a number would reseed the whole process
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    return {
        task: {
            **_plain_numbers(metrics),
            "documents": sum(results["n-samples"][part]["effective"] for part in subtasks(results, task)),
            "truncated": sum(_count_truncated(lm, results["samples"].get(p, [])) for p in subtasks(results, task)),
            "fewshot": max(int(results["n-shot"].get(part) or 0) for part in subtasks(results, task)),
            "chat_template": int(rendered or template),
        }
        for task, metrics in results["results"].items()
    }


@contextmanager
def open_lm(settings: LmEval, model: Path, renderer: Renderer, device: str, special_tokens: bool) -> Iterator[Any]:
    """Open the model as one of lm-eval's model classes."""
    if isinstance(settings.backend, VLLM):
        from selfcontrast.evaluation.lm_eval_vllm import VllmLM

        with settings.backend.engine(model) as respond:
            yield VllmLM(respond, renderer, settings.backend.max_length, special_tokens)
    else:
        assert isinstance(settings.backend, HF)  # `LmEval.check` allows no other
        from lm_eval.models.huggingface import HFLM

        from selfcontrast.models.rows import use_exact_attention

        lm = HFLM(
            pretrained=str(model),
            tokenizer=renderer.tokenizer,
            device=device,
            dtype=settings.backend.dtype,
            batch_size=settings.batch_size,
            add_bos_token=None if special_tokens else False,
        )
        use_exact_attention(lm.model)
        yield lm


def subtasks(results: dict[str, Any], task: str) -> list[str]:
    """List the tasks of a group, nested groups included, from lm-eval's results. A single task is listed alone."""
    members = results.get("group_subtasks", {}).get(task)
    return [part for member in members for part in subtasks(results, member)] if members else [task]


def _count_truncated(lm: Any, samples: Sequence[dict[str, Any]]) -> int:
    """Count the documents with a request longer than the model reads. lm-eval cuts off the request's beginning."""
    return len({sample["doc_id"] for sample in samples if any(_exceeds(lm, a) for a in sample["arguments"])})


def _exceeds(lm: Any, arguments: Sequence[Any]) -> bool:
    if len(arguments) < 2:  # the request is a whole text, which is scored in windows
        return False
    context, rest = arguments[0], arguments[1]
    if isinstance(rest, dict):
        return bool(len(lm.tok_encode(context)) + rest.get("max_gen_toks", lm.max_gen_toks) > lm.max_length)
    limit = getattr(lm, "max_scored_tokens", lm.max_length + 1)  # HFLM never feeds the last token
    return bool(sum(map(len, lm._encode_pair(context, rest))) > limit)


@contextmanager
def _single_process() -> Iterator[None]:
    """Keep lm-eval's bootstrap in this process, since a forked process would hold the model too. Hide its output."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def _plain_numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Keep the numbers of lm-eval's results, which also hold NumPy scalars, names and "N/A".

    lm-eval's name of a standard error, "acc_stderr,none", becomes "acc stderr".
    """
    numbers = {}
    for key, value in metrics.items():
        if isinstance(value, int | float | np.number) and key != "sample_len":
            name = key.removesuffix(",none")
            numbers[name.replace("_stderr", "", 1) + STDERR if "_stderr" in name else name] = float(value)
    return numbers
