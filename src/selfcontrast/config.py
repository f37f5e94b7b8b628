"""Build a job from its config, and run every check that can fail before compute.

Each group of `conf/` names the class that it builds (`_target_`). These classes are dataclasses without defaults, so
they are the schema: the YAML must hold exactly their fields, with their types.
"""

import difflib
import logging
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import Field, Strict

from selfcontrast import checks
from selfcontrast.constrained import (
    Count,
    Positive,
    Samples,
    Seed,
    Text,
    WholeNumber,
    check_protocol,
    check_values,
    convert,
)
from selfcontrast.data.builtin import Builtin
from selfcontrast.data.example import Example, Source, Split, Verifier
from selfcontrast.data.graders import NoVerifier, check_examples
from selfcontrast.data.rendering import Renderer
from selfcontrast.data.template_checks import drop_unrenderable
from selfcontrast.engines.work import Engine
from selfcontrast.environment import BEGUN
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import Benchmark
from selfcontrast.evaluation.compare import BASELINE
from selfcontrast.evaluation.evaluate import Evaluation
from selfcontrast.evaluation.published import PublishedFigure, read_figures
from selfcontrast.filters.chosen import check_chosen
from selfcontrast.filters.contenders import Chosen
from selfcontrast.filters.encode import Encoder
from selfcontrast.filters.select import Filter
from selfcontrast.generators.generate import Generator
from selfcontrast.models.adapters import Adapter
from selfcontrast.models.loading import FromScratch, Model
from selfcontrast.models.reward import RewardModel
from selfcontrast.objectives import Objective
from selfcontrast.store import Store
from selfcontrast.store.artifact import key_of
from selfcontrast.tracking import Tracking
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.optim import OptimConfig

GROUPS = (
    "data", "verifier", "model", "sft", "generator", "encoder", "filter", "chosen", "objective", "adapter", "trainer",
    "hardware", "evaluation", "engine", "tracking",
)  # fmt: skip
log = logging.getLogger(__name__)

# The types of the top-level keys besides the groups. `Strict`, because OmegaConf has already parsed integers.
SCALARS: dict[str, Any] = {
    "negatives": Annotated[Samples, Strict()],
    "iterations": Annotated[WholeNumber, Strict(), Field(le=1000)],
    "reference_over_iterations": Literal["previous", "initial"],
    "prompts_over_iterations": Literal["same", "disjoint"],
    "negatives_over_iterations": Literal["last", "all"],
    "seed": Annotated[Seed, Strict()],
    **dict.fromkeys(("name", "label", "target_metric", "store", "store_cache"), Text),
    "published": Text | None,
    "recompute": list[str],
    **dict.fromkeys(("beta", "fraction"), Positive),  # objectives and filters check them, too
    "fraction_of": Literal["distinct", "samples"],  # not every filter uses it
    "reference": Literal["stored", "none", "sampler"],
    "max_length": Annotated[Count, Strict()],
}
STAGES = (
    "data", "contamination", "sft", "generate", "gather", "embed", "score", "filter", "reference", "align", "evaluate",
    "answers", "divergence", "benchmark",
)  # fmt: skip
TARGET_METRICS = ("score", "difference", "win_rate")
PAPERS_METHOD = "Self-Contrast"  # the label of these classes:
PAPERS_CLASSES = {
    "generator": "Generation",
    "filter.selector": "LeastSimilar",
    "chosen": "Target",
    "objective": "SelfContrast",
}


@dataclass(frozen=True)
class Parts:
    """A job, built and checked: the argument of `pipeline.run`.

    `begun` is the start time of the command, in seconds since the epoch. A stage in `recompute` is computed again
    unless its artifact is newer than `begun`.
    """

    name: str
    label: str
    negatives: int
    iterations: int
    reference_over_iterations: str
    prompts_over_iterations: str
    negatives_over_iterations: str
    seed: int
    target_metric: str
    reference: str
    store: Store
    output: Path
    data: Source
    verifier: Verifier
    model: Model
    sft: OptimConfig
    generator: Generator
    encoder: Encoder
    filter: Filter
    chosen: Chosen
    objective: Objective
    adapter: Adapter
    trainer: OptimConfig
    hardware: Hardware
    evaluation: Evaluation
    engine: Engine
    tracking: Tracking
    published: list[PublishedFigure]
    recompute: list[str]
    begun: float
    splits: dict[Split, list[Example]]
    left_out: list[str]

    @property
    def grader(self) -> Verifier | None:
        """The verifier, if there is one."""
        return _grader(self.verifier)

    @property
    def rows(self) -> dict[str, Any]:
        """The settings that determine the examples: the data, and the rows that are left out."""
        return {
            "data": self.data.fingerprint(),
            **({"left_out": key_of({"rows": sorted(self.left_out)})} if self.left_out else {}),
        }


def configure(cfg: DictConfig, splits: dict[Split, list[Example]] | None = None) -> Parts:
    """Build every part, and check everything that can be checked before compute. Raise `UserError` for a mistake.

    Args:
        splits: the examples, if they have been read already.
    """
    for name, annotation in SCALARS.items():
        value = OmegaConf.to_container(cfg[name]) if isinstance(cfg[name], ListConfig) else cfg[name]
        convert(check_values(value, name), annotation, name)
    if cfg.label == BASELINE:
        raise UserError(f"label={BASELINE}: the fine-tuned model has that name. Give the policy another one.")
    if cfg.target_metric not in TARGET_METRICS:
        raise UserError(f"target_metric={cfg.target_metric}: must be one of {', '.join(TARGET_METRICS)}")
    if unknown := sorted(set(cfg.recompute) - set(STAGES)):
        raise UserError(f"recompute={unknown}: no such stages. Choose from {', '.join(STAGES)}.")
    parts = build_groups(cfg)
    if cfg.recompute and parts["hardware"].num_nodes > 1:
        raise UserError("recompute cannot be used with hardware.num_nodes > 1. Recompute the stages on one node first.")
    grader = _grader(parts["verifier"])
    verified = grader is not None
    parts["sft"].check("sft", parts["hardware"])
    parts["trainer"].check("trainer", parts["hardware"])
    parts["hardware"].check()
    parts["engine"].check()
    parts["tracking"].check()
    parts["evaluation"].backend.check()
    parts["evaluation"].lm_eval.check()
    parts["encoder"].check()
    parts["evaluation"].contamination.check()
    if not parts["evaluation"].backend.follows_model:
        raise UserError(
            "evaluation.backend=openai cannot be used: evaluation needs both the SFT model and the policy. "
            "Use hf or vllm."
        )
    if cfg.iterations > 1 and not parts["generator"].follows_model:
        raise UserError(
            f"iterations={cfg.iterations}: each iteration samples from a new policy, which this generator cannot "
            "load. Use generator=hf or generator=vllm, with generator.model=null."
        )
    if cfg.iterations:
        checks.check_signals(parts, str(cfg.reference), verified)
    splits = parts["data"].load() if splits is None else splits
    check_examples(parts["verifier"], parts["data"], splits)
    parts["generator"].check(splits["train"])
    generator = parts["generator"]
    parts["filter"].check(
        cfg.negatives, generator.samples, verified, generator.has_log_probs
    )  # a generator that reads pairs knows its number of samples only now
    check_chosen(parts["chosen"], parts["filter"], generator.samples, verified)
    checks.check_targets(parts, splits["train"], cfg.iterations)
    for name, benchmark in parts["evaluation"].benchmarks.items():
        _check_benchmark(benchmark, f"evaluation.benchmarks.{name}", grader)
    parts["model"].check()
    if parts["sft"].epochs == 0 and isinstance(parts["model"], FromScratch):
        raise UserError(
            "sft.epochs=0: the model has random weights. Raise sft.epochs, or use a trained model (model=hf "
            "model.path=…)."
        )
    parts["adapter"].check(parts["model"])
    if parts["adapter"].quantised:
        parts["hardware"].check_quantised()
    checks.check_lengths(parts, cfg.iterations)
    if not isinstance(parts["model"], FromScratch):
        checks.warn_of_learning_rates(parts, cfg.iterations)
    left_out: list[str] = []
    if not (isinstance(parts["data"], Builtin) and isinstance(parts["model"], FromScratch)):  # this pair always renders
        splits, left_out = drop_unrenderable(parts["data"], Renderer(parts["model"].tokenizer()), splits)
    splits, ungraded = checks.drop_ungradable(splits, str(parts["evaluation"].split), verified)
    left_out = [*left_out, *ungraded]
    checks.check_sampling(generator, parts["model"], splits["train"])
    if cfg.iterations > 1:
        checks.check_iterations(cfg, generator, parts["hardware"], parts["adapter"], len(splits["train"]))
    if cfg.iterations:
        checks.check_checkpoints(parts, len(splits["train"]))
    for model in _reward_models(parts):
        model.check_examples([example for examples in splits.values() for example in examples])
    job = assemble(cfg, parts, splits, left_out)
    for name in sorted({figure.benchmark for figure in job.published}):
        if getattr(job.evaluation.benchmarks.get(name), "own_questions", False):
            raise UserError(
                f"published={cfg.published} has figures of {name}, but evaluation.benchmarks.{name}.questions="
                f"{cfg.evaluation.benchmarks[name].questions} asks other questions. Set questions and references to "
                "FastChat's files, or set published=null."
            )
    return job


def assemble(
    cfg: DictConfig, parts: dict[str, Any], splits: dict[Split, list[Example]], left_out: Sequence[str] = ()
) -> Parts:
    """Assemble a job from built parts. Only the folders that the job writes to are checked."""
    output = Path(convert(check_values(cfg.output, "output"), Text, "output"))
    return Parts(
        name=run_name(cfg),
        label=str(cfg.label),
        negatives=cfg.negatives,
        iterations=cfg.iterations,
        reference_over_iterations=str(cfg.reference_over_iterations),
        prompts_over_iterations=str(cfg.prompts_over_iterations),
        negatives_over_iterations=str(cfg.negatives_over_iterations),
        seed=cfg.seed,
        target_metric=str(cfg.target_metric),
        reference=str(cfg.reference),
        recompute=list(cfg.recompute),
        begun=float(os.environ.get(BEGUN, time.time())),
        store=Store.at(str(cfg.store), Path(cfg.store_cache), output),
        output=output,
        published=[] if cfg.published is None else read_figures(str(cfg.published)),
        splits=splits,
        left_out=list(left_out),
        **parts,
    )


def run_name(cfg: DictConfig) -> str:
    """Return the run's name; if it is the default, with the method's full name."""
    name, rest = str(cfg.name), f" K={cfg.negatives} s{cfg.seed}"
    return method_name(cfg) + rest if name == f"{cfg.label}{rest}" else name


def method_name(config: Mapping[str, Any]) -> str:
    """Return a config's label. If it is the paper's method, add each class and source of candidates that is not.

    For example `filter=random` gives "Self-Contrast, filter.selector=Random".
    """
    label = str(config.get("label", PAPERS_METHOD))
    if label != PAPERS_METHOD:
        return label
    changed = []
    for key, cls in PAPERS_CLASSES.items():
        node: Any = config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping | DictConfig) else None
        if not isinstance(node, Mapping | DictConfig):
            continue  # old results lack it
        target = str(node.get("_target_", cls)).rpartition(".")[2]
        if target != cls:
            changed.append(f"{key}={target}")
        elif key == "generator":
            changed += [f"{key}.{setting}" for setting in ("model", "system") if node.get(setting)]
    return ", ".join([label, *changed])


def build_groups(cfg: DictConfig) -> dict[str, Any]:
    """Build each group of the config. Raise `UserError` as `build` does, and for a group of the wrong kind."""
    kinds = get_type_hints(Parts)
    return {group: convert(build(cfg[group], group), kinds[group], group) for group in GROUPS}


def build(node: Any, where: str) -> Any:
    """Build the dataclass that a config node's `_target_` names, nested nodes first.

    Args:
        where: the node's path in the config, for errors.

    Raises:
        UserError: if a key is unknown or missing, or a value has the wrong type. The error names the full key.
    """
    if isinstance(node, ListConfig):
        return [build(item, f"{where}[{i}]") for i, item in enumerate(node)]
    if not isinstance(node, DictConfig):
        return check_values(node, where)
    if "_target_" not in node:
        return {str(key): build(value, f"{where}.{key!s}") for key, value in node.items()}
    cls = _class(node["_target_"], where)
    _check_keys(node, cls, where)
    values = {str(name): build(value, f"{where}.{name!s}") for name, value in node.items() if name != "_target_"}
    hints = get_type_hints(cls, include_extras=True)
    checked = {f.name: convert(values[f.name], hints[f.name], f"{where}.{f.name}") for f in fields(cls)}
    try:
        return cls(**checked)
    except UserError as error:
        raise UserError(_full_key(str(error), where, checked)) from error
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"{where}: these settings contradict each other ({error}). Change one of them.") from error


def _grader(verifier: Verifier) -> Verifier | None:
    return None if isinstance(verifier, NoVerifier) else verifier


def _full_key(message: str, where: str, known: Collection[str]) -> str:
    """Add the setting's full path to an error message of a class, which does not know its place in the config."""
    parent, _, last_key = where.rpartition(".")
    first_word = re.split(r"\W", message, maxsplit=1)[0]
    if first_word in known:
        return f"{where}.{message}"
    return f"{parent}.{message}" if parent and first_word == re.split(r"\W", last_key)[0] else message


def _check_benchmark(benchmark: Benchmark, where: str, verifier: Verifier | None) -> None:
    """Check a benchmark before compute. Raise `UserError` with its path in the config."""
    check_protocol(benchmark, Benchmark, where)
    try:
        benchmark.check(verifier)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _reward_models(parts: dict[str, Any]) -> list[RewardModel]:
    """Return all reward models: the filter's, and those of benchmarks and their judges."""
    benchmarks = list(parts["evaluation"].benchmarks.values())
    judges = [getattr(benchmark, "judge", None) for benchmark in benchmarks]
    panels = [judge for panel in judges for judge in getattr(panel, "judges", {}).values()]
    holders = [parts["filter"], *benchmarks, *judges, *panels]
    models = [getattr(holder, "reward_model", None) for holder in holders]
    return [model for model in models if isinstance(model, RewardModel)]


def _class(target: str, where: str) -> Any:
    try:
        cls = resolve_name(str(target))
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}._target_={target}: no such class ({error}). Name one as MODULE.CLASS, and install its package."
        ) from error
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise UserError(f"{where}._target_={target}: must be a dataclass whose fields are the config's keys")
    return cls


def _check_keys(node: DictConfig, cls: Any, where: str) -> None:
    known = [f.name for f in fields(cls)]
    for key in map(str, node):
        if key not in (*known, "_target_"):
            matches = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {where}.{matches[0]}?" if matches else f"Its settings: {', '.join(known) or 'none'}."
            raise UserError(f"{where}.{key}: no such setting. {hint}")
    for key in known:
        if OmegaConf.is_missing(node, key):  # checked first, because `in` is False for "???"
            raise UserError(f"{where}.{key} is required. Set {where}.{key}=…")
        if key not in node:
            raise UserError(f"{where}.{key} is missing from the config. Give +{where}.{key}=…, or add it to the file.")
