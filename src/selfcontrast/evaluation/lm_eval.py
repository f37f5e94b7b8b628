"""Define the settings of lm-evaluation-harness, and check them before anything is computed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from selfcontrast.constrained import Count, Text, WholeNumber, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.evaluation.lm_eval_tasks import (
    EXAMPLE_SPLITS,
    FORMATS,
    builtin_configs,
    builtin_tasks,
    has_file,
    read_task,
    silence_libraries,
    task_file,
    task_hash,
    tasks_with_files,
    uses_held_out_prompts,
    with_local_documents,
)
from selfcontrast.generators.backend import Backend
from selfcontrast.generators.hf import HF
from selfcontrast.generators.vllm import VLLM
from selfcontrast.store import NOT_IN_KEY, fields_of


def files_hash(paths: dict[str, str]) -> dict[str, str]:
    """Hash the contents of the files. A result depends on the contents, not on the paths."""
    return {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in paths.items()}


@dataclass(frozen=True)
class LmEval:
    """The tasks to run, and their settings.

    Attributes:
        tasks: names of files in `evaluation/lm_eval/`, or of lm-eval's own tasks, groups and tags; empty for none.
        local: by name of one of lm-eval's own tasks, a local file of documents (.json, .jsonl, .csv, .parquet) to use
            instead of the hub's data.
        limit: documents per task; None for all.
        fewshot: examples before each document; None for the task's own number. Tasks in `local` have none.
        apply_chat_template: True to render prompts as chats.
        max_length: bound on the tokens of a held-out prompt and a response together; longer documents are left out.
        confirm_run_unsafe_code: True to allow tasks that run code that the model wrote.
        batch_size: sequences per batch, with `HF`; vLLM makes its own batches.
        backend: the `selfcontrast.generators.hf.HF` or `selfcontrast.generators.vllm.VLLM` that runs the model.

    Tasks that use the held-out prompts ignore `fewshot` and `apply_chat_template`: their prompts are already rendered.
    """

    tasks: list[Text]
    local: dict[Text, Text] = field(metadata={"in_key_as": files_hash})
    limit: Count | None
    fewshot: Annotated[WholeNumber, Field(le=1000)] | None
    apply_chat_template: bool
    max_length: Count
    confirm_run_unsafe_code: bool
    batch_size: Count = field(metadata=NOT_IN_KEY)
    backend: Backend

    def __post_init__(self) -> None:
        check_numbers(self, "evaluation.lm_eval")

    def check(self) -> None:
        """Raise `UserError` for a task that does not exist, is not allowed to run, or lacks its data or packages."""
        if not isinstance(self.backend, HF | VLLM):
            raise UserError(
                "evaluation.lm_eval.backend: this backend computes no log-probabilities of prompts. Use hf or vllm."
            )
        for task, path in self.local.items():
            self._check_local(task, path)
        if not self.tasks:
            return
        try:
            self.backend.check()
        except UserError as error:
            raise UserError(f"evaluation.lm_eval.backend: {error}") from error
        for task in self.tasks:
            if has_file(task):
                self._check_safe(task, [read_task(task)])
                self._check_examples(task)
            else:
                self._check_builtin(task)

    def check_positions(self, positions: int) -> None:
        """Raise `UserError` if one of lm-eval's tasks generates at least as many tokens as the model has positions."""
        for task in self.tasks:
            for config in [] if has_file(task) else builtin_configs(task):
                max_new_tokens = (config.get("generation_kwargs") or {}).get("max_gen_toks", 0)
                if max_new_tokens >= positions:
                    raise UserError(
                        f"evaluation.lm_eval.tasks={task}: the task generates up to {max_new_tokens} tokens, and the "
                        f"model has {positions} positions. Remove the task, or use a model with more positions."
                    )

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the results, as JSON, including the files in `evaluation/lm_eval/`."""
        files = {task: task_hash(task) for task in self.tasks if has_file(task)}
        fields = fields_of(self)
        if not self.local:
            del fields["local"]
        return {**fields, "files": files}

    def _check_local(self, task: str, path: str) -> None:
        key = f"evaluation.lm_eval.local.{task}"
        if task not in self.tasks or has_file(task):
            raise UserError(
                f"{key}: {task} must be one of lm-eval's own tasks, and evaluation.lm_eval.tasks must name it. "
                "Add it to the tasks, or remove this key."
            )
        if not Path(path).is_file():
            raise UserError(f"{key}={path}: no such file. Name an existing one.")
        if Path(path).suffix not in FORMATS:
            raise UserError(f"{key}={path}: unknown format. Use a file that ends with {', '.join(FORMATS)}.")
        if self.fewshot:
            raise UserError(
                f"evaluation.lm_eval.fewshot={self.fewshot}: {path} holds the documents of {task}, but no few-shot "
                "examples. Use 0 or null; with local documents, both show no examples."
            )

    def _check_examples(self, task: str) -> None:
        """Reject few-shot examples for a task file that names no split for them.

        lm-eval would take the examples from the test documents, perhaps even the question itself with its answer.
        """
        config = read_task(task)
        default = config.get("num_fewshot")
        # lm-eval never overrides a task's own 0.
        count = default if self.fewshot is None or default == 0 else self.fewshot
        if count and not uses_held_out_prompts(task) and not any(config.get(split) for split in EXAMPLE_SPLITS):
            raise UserError(
                f"evaluation.lm_eval.tasks={task}: {task_file(task).name} names no split for its {count} few-shot "
                "examples. Name its training_split, or use evaluation.lm_eval.fewshot=0."
            )

    def _check_builtin(self, task: str) -> None:
        with silence_libraries():
            if task not in builtin_tasks().all_tasks:
                raise UserError(
                    f"evaluation.lm_eval.tasks={task}: no such task. Use one of evaluation/lm_eval "
                    f"({', '.join(tasks_with_files())}) or one that `lm_eval ls tasks` lists."
                )
            self._check_safe(task, builtin_configs(task))
            try:
                builtin_tasks().load([with_local_documents(task, self.local[task]) if task in self.local else task])
                _check_punkt(task)
            except UserError:
                raise
            except ModuleNotFoundError as error:
                extra = "'.[ifeval]'" if "ifeval" in task else str(error.name)
                raise UserError(
                    f"evaluation.lm_eval.tasks={task}: the package {error.name} is not installed. Run "
                    f"pip install {'-e ' if 'ifeval' in task else ''}{extra}"
                ) from error
            except Exception as error:  # any library that loads data may raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"evaluation.lm_eval.tasks={task}: its data cannot be loaded ({reason}). Download the data once on "
                    f"a machine with a network (into the folder HF_HOME), or name a file with "
                    f"+evaluation.lm_eval.local.{task}=FILE, or write a task file with dataset_kwargs.data_files "
                    "in evaluation/lm_eval."
                ) from error

    def _check_safe(self, task: str, configs: Sequence[dict[str, Any]]) -> None:
        if not self.confirm_run_unsafe_code and any(config.get("unsafe_code") for config in configs):
            raise UserError(
                f"evaluation.lm_eval.tasks={task}: the task runs code that the model wrote. If that is safe on this "
                "machine, set evaluation.lm_eval.confirm_run_unsafe_code=true."
            )


def _check_punkt(task: str) -> None:
    """Raise `UserError` if IFEval's sentence splitter is missing. Otherwise lm-eval would fail after training."""
    if "ifeval" not in task:
        return
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise UserError(
            f"evaluation.lm_eval.tasks={task}: NLTK's punkt_tab is missing. Run python -m nltk.downloader punkt_tab "
            "on a machine with a network (into the folder NLTK_DATA)."
        ) from error
