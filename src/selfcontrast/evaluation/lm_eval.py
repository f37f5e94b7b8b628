"""Tasks of lm-evaluation-harness: its own by name, and those in `evaluation/lm_eval/` over the data at hand.

A file there is a task in lm-eval's format. One without `dataset_kwargs` is over the held-out prompts, which are
written here as a local Parquet file: per document the rendered `query`, and either its `choices` and the index
`gold` of the right one (multiple_choice) or its `target` (generate_until). Nothing is downloaded for these.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from selfcontrast.constrained import Count, Text, WholeNumber, check_numbers
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.lm_eval_documents import choice_documents, generation_documents
from selfcontrast.evaluation.statistics.task_metrics import STDERR
from selfcontrast.files import EVALUATION
from selfcontrast.generators.backend import Backend
from selfcontrast.generators.hf import HF
from selfcontrast.generators.vllm import VLLM
from selfcontrast.store import NOT_IN_KEY, fields_of

log = logging.getLogger(__name__)

BOOTSTRAPS = 1000  # for the standard errors of metrics that are no means

TASKS = EVALUATION / "lm_eval"
FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}  # of local data, by datasets' names
EXAMPLES = ("training_split", "validation_split", "fewshot_split", "fewshot_config")  # what may be shown first
HUB_ONLY = ("dataset_name", *EXAMPLES)  # what a local file has not


def files_hash(paths: dict[str, str]) -> dict[str, str]:
    """Of the files' contents, which decide a result as their places do not."""
    return {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in paths.items()}


@dataclass(frozen=True)
class LmEval:
    """Which tasks, and how they are asked.

    Attributes:
        tasks: files in `evaluation/lm_eval/`, or lm-eval's own by name: tasks, groups or tags; none to leave it out.
        local: by the name of a task of lm-eval's a file of yours with its documents (.json, .jsonl, .csv, .parquet), in
            place of those on the hub.
        limit: documents per task; None for all.
        fewshot: examples before each document; None for as many as the task says, and none before those of `local`.
        apply_chat_template: whether prompts are rendered as chats.
        max_length: tokens of a held-out prompt and a response; what is longer is left out.
        confirm_run_unsafe_code: whether tasks may run code that the model wrote.
        batch: sequences at once, with `HF`; vLLM batches as it likes.
        backend: what the model runs in, a `selfcontrast.generators.hf.HF` or `selfcontrast.generators.vllm.VLLM`.

    The fewshot number and the template are not for tasks over the held-out prompts: those are rendered already.
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
        """Raises `UserError` for a task that nobody has, or that may not run, or whose data cannot be had."""
        if not isinstance(self.backend, HF | VLLM):
            raise UserError("evaluation.lm_eval.backend: hf or vllm; others give no likelihoods of a prompt")
        for task, path in self.local.items():
            self._check_local(task, path)
        if not self.tasks:
            return
        try:
            self.backend.check()
        except UserError as error:
            raise UserError(f"evaluation.lm_eval.backend: {error}") from error
        for task in self.tasks:
            if _file(task).exists():
                self._check_safe(task, [_read(task)])
                self._check_examples(task)
            else:
                self._check_theirs(task)

    def check_positions(self, positions: int) -> None:
        """Raises `UserError` for a task of lm-eval's that has answers written which are longer than the model."""
        for task in self.tasks:
            for config in [] if _ours(task) else _configs(_theirs(), task):
                longest = (config.get("generation_kwargs") or {}).get("max_gen_toks", 0)
                if longest >= positions:
                    raise UserError(
                        f"evaluation.lm_eval.tasks={task}: it has answers of up to {longest} tokens written, and the "
                        f"model has {positions} positions: leave it out, or take another model"
                    )

    def fingerprint(self) -> dict[str, Any]:
        """What decides the results, as JSON: the files in `evaluation/lm_eval/` among it."""
        files = {task: _content(task) for task in self.tasks if _ours(task)}
        own = fields_of(self)
        if not self.local:
            del own["local"]
        return {**own, "files": files}

    def _check_local(self, task: str, path: str) -> None:
        if task not in self.tasks or _ours(task):
            raise UserError(
                f"evaluation.lm_eval.local.{task}: evaluation.lm_eval.tasks names no such task of lm-eval's"
            )
        if not Path(path).is_file():
            raise UserError(f"evaluation.lm_eval.local.{task}={path}: no such file")
        if Path(path).suffix not in FORMATS:
            raise UserError(f"evaluation.lm_eval.local.{task}={path}: its name must end with {', '.join(FORMATS)}")
        if self.fewshot:
            raise UserError(
                f"evaluation.lm_eval.fewshot={self.fewshot}: {path} holds the documents of {task} alone, and no "
                "examples to show before them; use 0 or null, which are the same here"
            )

    def _check_examples(self, task: str) -> None:
        """Refuse to show examples that a file in `evaluation/lm_eval/` has not.

        lm-eval would take them from the test documents, the document asked and its answer among them.
        """
        config = _read(task)
        own = config.get("num_fewshot")
        count = own if self.fewshot is None or own == 0 else self.fewshot  # as lm-eval: a task's own 0 stays
        if count and not _rendered(task) and not any(config.get(source) for source in EXAMPLES):
            raise UserError(
                f"evaluation.lm_eval.tasks={task}: {count} examples before each document, and {_file(task).name} names "
                "no split to take them from: name its training_split, or use evaluation.lm_eval.fewshot=0"
            )

    def _check_theirs(self, task: str) -> None:
        with _quiet():
            manager = _theirs()
            if task not in manager.all_tasks:
                known = ", ".join(sorted(file.stem for file in TASKS.glob("*.yaml")))
                raise UserError(
                    f"evaluation.lm_eval.tasks={task}: no such task; {TASKS.name}/ holds {known}, and "
                    "`lm_eval ls tasks` lists those of lm-eval"
                )
            self._check_safe(task, _configs(manager, task))
            try:
                manager.load([_with_local(task, self.local[task]) if task in self.local else task])
                _check_sentences(task)
            except UserError:
                raise
            except ModuleNotFoundError as error:
                extra = "'.[ifeval]'" if "ifeval" in task else str(error.name)
                raise UserError(
                    f"evaluation.lm_eval.tasks={task}: it needs the package {error.name}, which is not installed: "
                    f"pip install {'-e ' if 'ifeval' in task else ''}{extra}"
                ) from error
            except Exception as error:  # of whatever library the task's data come through
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"evaluation.lm_eval.tasks={task}: its data cannot be had ({first}): download them once where "
                    f"there is a network (HF_HOME keeps them), or name a file, "
                    f"+evaluation.lm_eval.local.{task}=FILE, or write a task file with "
                    f"dataset_kwargs.data_files in {TASKS.name}/"
                ) from error

    def _check_safe(self, task: str, configs: Sequence[dict[str, Any]]) -> None:
        if not self.confirm_run_unsafe_code and any(config.get("unsafe_code") for config in configs):
            raise UserError(
                f"evaluation.lm_eval.tasks={task}: it runs code that the model wrote; where that can do no harm, "
                "evaluation.lm_eval.confirm_run_unsafe_code=true"
            )


def run_tasks(
    settings: LmEval, model: Path, examples: Sequence[Example], renderer: Renderer, device: str, seed: int
) -> dict[str, dict[str, float]]:
    """Run the tasks; return per task its metrics, as plain numbers, each with its standard error ("acc stderr").

    Beside them: how many `documents` they are over, how many were `left_out` because they do not fit, and how many
    lm-eval has `truncated`; the examples shown before each (`fewshot`), and whether prompts were rendered with the
    `chat_template` (1 or 0).
    """
    rendered = [task for task in settings.tasks if _rendered(task)]
    others = [_given(task, settings) for task in settings.tasks if task not in rendered]
    found: dict[str, dict[str, float]] = {}
    with _quiet(), _one_process(), tempfile.TemporaryDirectory() as folder:
        left_out: dict[str, int] = {}
        configs = []
        for task in rendered:
            some = examples[: settings.limit]
            config, left_out[task] = _written(task, some, renderer, settings.max_length, seed, Path(folder))
            if config:
                configs.append(config)
            else:
                log.warning("lm-eval: %s is left out: none of its %d documents fits", task, left_out[task])
        if configs:
            found |= _evaluate(configs, settings, model, renderer, device, rendered=True)
        if others:
            found |= _evaluate(others, settings, model, renderer, device, rendered=False)
    for task in found:
        found[task]["left_out"] = left_out.get(task, 0)
    return found


def _file(task: str) -> Path:
    return TASKS / f"{task}.yaml"


def _ours(task: str) -> bool:
    return _file(task).exists()


def _given(task: str, settings: LmEval) -> Any:
    """What lm-eval is given for a task that is not over the held-out prompts: a config, or its own task's name."""
    if _ours(task):
        return _read(task)
    return _with_local(task, settings.local[task]) if task in settings.local else task


def _with_local(task: str, path: str) -> dict[str, Any]:
    """A task of lm-eval's, with its own code, over the documents of a local file, with no examples before them."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = _theirs().task_index[task]
    config = load_yaml(entry.yaml_path) if entry.kind.name == "TASK" and entry.yaml_path else {}
    split = config.get("test_split") or config.get("validation_split")
    if not split:
        raise UserError(
            f"evaluation.lm_eval.local.{task}: it is no single task with documents of its own; name its parts"
        )
    kept = {key: value for key, value in config.items() if key not in HUB_ONLY}
    kept["num_fewshot"] = 0  # else lm-eval shows as many test documents, the one asked and its answer among them
    files = {"data_files": {split: path}}
    return {**kept, "test_split": split, "dataset_path": FORMATS[Path(path).suffix], "dataset_kwargs": files}


def _check_sentences(task: str) -> None:
    """Raise `UserError` where a task of IFEval's lacks what splits sentences: it would be missed after training."""
    if "ifeval" not in task:
        return
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise UserError(
            f"evaluation.lm_eval.tasks={task}: it needs NLTK's punkt_tab: python -m nltk.downloader punkt_tab, where "
            "there is a network (the folder that NLTK_DATA names keeps it)"
        ) from error


def _read(task: str) -> dict[str, Any]:
    import yaml

    try:
        return dict(yaml.safe_load(_file(task).read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"evaluation.lm_eval.tasks={task}: {_file(task).name} cannot be read ({first})") from error


def _content(task: str) -> str:
    """A hash of a task's file and of the local files that its data are in."""
    found = hashlib.sha256(_file(task).read_bytes())
    given = (_read(task).get("dataset_kwargs") or {}).get("data_files") or {}
    for group in given.values() if isinstance(given, dict) else [given]:
        for path in [group] if isinstance(group, str) else group:
            if Path(path).is_file():
                found.update(Path(path).read_bytes())
    return found.hexdigest()


def _rendered(task: str) -> bool:
    """Whether it is over the held-out prompts, rendered here."""
    return _ours(task) and "dataset_kwargs" not in _read(task)


def _written(
    task: str, examples: Sequence[Example], renderer: Renderer, max_length: int, seed: int, folder: Path
) -> tuple[dict[str, Any] | None, int]:
    """The task of a file, its documents written to `folder`, and how many prompts gave none; None where all did not."""
    config = _read(task)
    if config["output_type"] == "multiple_choice":
        documents = choice_documents(examples, renderer, max_length, seed)
    else:
        documents = generation_documents(examples, renderer, max_length, config["generation_kwargs"]["max_gen_toks"])
    if not documents:
        return None, len(examples)
    # Parquet, whose columns have types: of JSON, texts that all look like dates would become dates.
    file, config["dataset_path"] = folder / f"{task}.parquet", "parquet"
    pq.write_table(pa.Table.from_pylist(documents), file)
    config["dataset_kwargs"] = {"data_files": {"test": str(file)}, "cache_dir": str(folder)}
    return config, len(examples) - len(documents)


@cache
def _theirs() -> Any:
    """What lm-eval comes with: thousands of files, read only where one of them is asked for."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=True)


def _configs(manager: Any, name: str) -> list[dict[str, Any]]:
    """Of a task its config, of a group or tag those of all its tasks; without their data."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if (entry := manager.task_index.get(name)) is None:
        return []
    if entry.kind.name == "TAG":
        members: Any = sorted(entry.tags)
    else:
        config = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else (entry.cfg or {})
        members = config.get("task")
        if not isinstance(members, list):
            return [config]
    names = [member if isinstance(member, str) else member.get("task", member.get("group")) for member in members]
    return [config for member in names if isinstance(member, str) for config in _configs(manager, member)]


def _evaluate(
    tasks: Sequence[Any], settings: LmEval, model: Path, renderer: Renderer, device: str, rendered: bool
) -> dict[str, dict[str, float]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    template = settings.apply_chat_template and not rendered
    named = any(isinstance(task, str) for task in tasks)
    # A rendered query holds its special tokens already, whoever has rendered it.
    with _opened(settings, model, renderer, device, special_tokens=not (rendered or template)) as lm:
        lm.tokenizer.chat_template = renderer.tokenizer.chat_template  # without a clock that shows the day of today
        found = simple_evaluate(
            model=lm,
            tasks=list(tasks),
            task_manager=_theirs() if named else TaskManager(include_defaults=False),
            num_fewshot=None if rendered else settings.fewshot,
            apply_chat_template=template,
            limit=None if rendered else settings.limit,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=True,
            confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
            random_seed=None,  # it would reseed the whole process
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    return {
        task: {
            **_numbers(metrics),
            "documents": sum(found["n-samples"][part]["effective"] for part in parts_of(found, task)),
            "truncated": sum(_truncated(lm, found["samples"].get(part, [])) for part in parts_of(found, task)),
            "fewshot": max(int(found["n-shot"].get(part) or 0) for part in parts_of(found, task)),
            "chat_template": int(rendered or template),
        }
        for task, metrics in found["results"].items()
    }


@contextmanager
def _opened(settings: LmEval, model: Path, renderer: Renderer, device: str, special_tokens: bool) -> Iterator[Any]:
    """The model as lm-eval asks it."""
    if isinstance(settings.backend, VLLM):
        from selfcontrast.evaluation.lm_eval_vllm import VllmLM

        with settings.backend.engine(model) as respond:
            yield VllmLM(respond, renderer, settings.backend.max_length, special_tokens)
    else:
        assert isinstance(settings.backend, HF)  # as `check` requires
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


def parts_of(found: dict[str, Any], task: str) -> list[str]:
    """Of lm-eval's results the tasks that a name stands for: of a group all its tasks and those of its groups."""
    members = found.get("group_subtasks", {}).get(task)
    return [part for member in members for part in parts_of(found, member)] if members else [task]


def _truncated(lm: Any, samples: Sequence[dict[str, Any]]) -> int:
    """How many documents hold a request that is longer than the model reads, whose beginning lm-eval cuts off."""
    return len({sample["doc_id"] for sample in samples if any(_cut(lm, a) for a in sample["arguments"])})


def _cut(lm: Any, arguments: Sequence[Any]) -> bool:
    if len(arguments) < 2:  # a text that is scored in windows, whole
        return False
    context, rest = arguments[0], arguments[1]
    if isinstance(rest, dict):
        return bool(len(lm.tok_encode(context)) + rest.get("max_gen_toks", lm.max_gen_toks) > lm.max_length)
    scored = getattr(lm, "most_scored", lm.max_length + 1)  # transformers do not read the last token
    return bool(sum(map(len, lm._encode_pair(context, rest))) > scored)


@contextmanager
def _one_process() -> Iterator[None]:
    """Have lm-eval bootstrap standard errors in this process: it would fork one that holds a model, and print."""
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
    """Pick the numbers out of lm-eval's results, which hold NumPy scalars, names and "N/A" as well.

    A metric's standard error, "acc_stderr,none" there, is called "acc stderr" here.
    """
    found = {}
    for name, value in metrics.items():
        if isinstance(value, int | float | np.number) and name != "sample_len":
            own = name.removesuffix(",none")
            found[own.replace("_stderr", "", 1) + STDERR if "_stderr" in own else own] = float(value)
    return found
