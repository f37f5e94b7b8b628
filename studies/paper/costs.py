"""Estimate the cost of a plan's stages: tokens from data and settings, hours from measured speeds, and bytes.

Speeds are per device. They come from --speed, from a file that names their source, or from a finished run. Without a
speed the hours are unknown.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from selfcontrast.config import Parts
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.reward import RewardWins
from selfcontrast.evaluation.compare import BASELINE
from selfcontrast.models.loading import FromScratch
from selfcontrast.planning.plan import Planned, PlannedStage
from selfcontrast.training.optim import OptimConfig

CHARACTERS_PER_TOKEN = 4  # roughly, for English text; no tokenizer is loaded
SPEEDS = ("train", "generate", "score", "embed")
KINDS = {  # the kind of speed of each long stage
    "sft": "train",
    "align": "train",
    "generate": "generate",
    "evaluate": "generate",
    "answers": "generate",
    "reference": "score",
    "divergence": "score",
    "embed": "embed",
}
UNITS = dict.fromkeys(("train", "generate", "score"), "tokens") | {"embed": "texts"}
KNOWN_PARAMETERS = {  # from the architecture: 32 layers of width 4096, 8 key-value heads, 14336 wide MLPs, 32000 tokens
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "alignment-handbook/zephyr-7b-sft-full": 7_241_732_096,
}
DIMENSIONS = {"builtin": 384, "WhereIsAI/UAE-Large-V1": 1024}  # dimensions of an embedding, stored in 2 bytes each
BYTES = {"float32": 4, "bfloat16": 2}
OPTIMISER_BYTES = 12  # per parameter in a checkpoint: float32 weights and two moments
CANDIDATE_BYTES = 8  # per sampled token: its id and its text


@dataclass(frozen=True)
class Sizes:
    """Sizes of data and model that decide a job's work. None means unknown.

    Attributes:
        prompts: training prompts.
        evaluated: evaluation prompts.
        prompt_tokens, response_tokens: mean number of tokens of a prompt and of a response. The length of responses is
            estimated from the stored candidates. If there are none, it is estimated from the targets.
        parameters: number of the model's parameters.
    """

    prompts: int | None
    evaluated: int | None
    prompt_tokens: float | None
    response_tokens: float | None
    parameters: float | None


@dataclass(frozen=True)
class Work:
    """The work of a stage.

    Attributes:
        kind: name of the speed that applies; None if the stage counts as free.
        amount: in the unit of this speed; None if unknown.
        disk: bytes that the stage writes; None if unknown.
    """

    kind: str | None
    amount: float | None
    disk: float | None


def sizes_of(planned: Planned, **overrides: Any) -> Sizes:
    """Return the sizes from the data, if it can be read. `overrides` take precedence, except those that are None."""
    parts = planned.parts
    train, evaluated = parts.splits["train"], parts.evaluation.choose(parts.splits)
    sampled = [step.artifact.summary.get("tokens_per_response") for step in planned.steps if step.stage == "generate"]
    sizes = Sizes(
        len(train) or None,
        len(evaluated) or parts.evaluation.prompts,
        _mean([sum(len(message["content"]) for message in e.prompt) for e in train]),
        next(filter(None, sampled), None) or _mean([len(example.target) for example in train]),
        parameters(parts),
    )
    return replace(sizes, **{name: value for name, value in overrides.items() if value is not None})


def parameters(parts: Parts) -> float | None:
    """Return the number of the model's parameters; None without a config on this machine and for unknown names."""
    model = parts.model
    path = str(getattr(model, "path", ""))
    if isinstance(model, FromScratch) or Path(path).is_dir():
        return float(sum(p.numel() for p in model.skeleton().parameters()))
    return KNOWN_PARAMETERS.get(path)


def _mean(characters: Sequence[int]) -> float | None:
    return statistics.fmean(characters) / CHARACTERS_PER_TOKEN if characters else None


def work(step: PlannedStage, parts: Parts, sizes: Sizes) -> Work:
    """Return the work of a stage that is not in the store. Filtering and comparing take CPU minutes and count as 0."""
    rewarded = isinstance(parts.evaluation.benchmarks.get(step.label.partition(" ")[0]), RewardWins)
    if None in (sizes.prompts, sizes.evaluated, sizes.prompt_tokens, sizes.response_tokens):
        disk = None if step.stage in ("generate", "embed", "reference") else _policy_bytes(step, parts, sizes)
        return Work("score" if rewarded else KINDS.get(step.stage), None, disk)
    prompt, response, evaluated = sizes.prompt_tokens or 0, sizes.response_tokens or 0, sizes.evaluated or 0
    prompts = sizes.prompts or 0
    used_prompts = min(prompts, getattr(parts.generator, "prompts", None) or prompts)
    sampled, policy = parts.generator.samples, _policy_bytes(step, parts, sizes)
    match step.stage:
        case "sft":
            return Work("train", _training_tokens(parts.sft, prompts * (prompt + response)), policy)
        case "generate":
            tokens = used_prompts * sampled * response
            local = getattr(parts.generator, "backend", parts.generator).follows_model  # else another server's work
            return Work("generate" if local else None, tokens if local else 0, tokens * CANDIDATE_BYTES)
        case "embed":
            width = DIMENSIONS.get(getattr(parts.encoder, "path", ""), getattr(parts.encoder, "dimensions", 1024))
            return Work("embed", used_prompts * (sampled + 1), used_prompts * (sampled + 1) * width * 2)
        case "reference":
            responses = 1 + (parts.filter.max_negatives if parts.reference == "stored" else 0)
            scored = used_prompts * (prompt + responses * response)
            return Work("score", scored, scored * 4)
        case "align":
            used = parts.negatives if parts.objective.uses_negatives else 0
            return Work(
                "train", _training_tokens(parts.trainer, used_prompts * (prompt + (1 + used) * response)), policy
            )
        case "evaluate":
            settings = parts.evaluation.of_checkpoints() if _of_checkpoint(step, parts) else parts.evaluation
            answers = evaluated * sum(decoding.samples for decoding in settings.named_decodings)
            return Work("generate", answers * response, 0)
        case "divergence":  # the policy and the fine-tuned model each score the answers
            drawn = evaluated * (parts.evaluation.sampled.samples if parts.evaluation.sampled else 0) * response
            models = 1 if step.label == f"divergence {BASELINE}" else 2
            return Work("score", models * (evaluated * prompt + drawn), models * drawn * 4)
        case "answers":
            return Work("generate", _benchmark_answers(step, parts) * response, 0)
        case "benchmark" if rewarded:
            return Work("score", evaluated * 2 * (prompt + response), 0)
        case _:
            return Work(None, 0, 0)


def _benchmark_answers(step: PlannedStage, parts: Parts) -> int:
    """Return the number of answers to a benchmark's own questions, one per turn."""
    benchmark = parts.evaluation.benchmarks[step.label.partition(" ")[0]]
    request = benchmark.answer_request(parts.evaluation.choose(parts.splits))
    assert request is not None  # only a benchmark with questions has this stage
    return sum(
        decoding.samples * max(1, len(question.turns))
        for decoding, questions in request.questions
        for question in questions
    )


def _training_tokens(optim: OptimConfig, tokens_per_epoch: float) -> float:
    return float(optim.tokens) if optim.tokens is not None else optim.epochs * tokens_per_epoch


def _policy_bytes(step: PlannedStage, parts: Parts, sizes: Sizes) -> float | None:
    if step.stage not in ("sft", "align"):
        return 0
    policies = max(1, parts.evaluation.checkpoints) if step.stage == "align" else 1
    return None if sizes.parameters is None else policies * sizes.parameters * BYTES[parts.model.dtype]


def _of_checkpoint(step: PlannedStage, parts: Parts) -> bool:
    """Return whether the stage scores a checkpoint, which the job labels "METHOD 1/4"."""
    checkpoints = parts.evaluation.checkpoints
    return checkpoints > 0 and step.label.endswith(f"/{checkpoints}")


# --- speeds


def measured(run: Path) -> dict[str, float]:
    """Return the speeds per device of a finished run: medians over training steps, means over other stages.

    The speed `train` is that of preference training; without it, that of SFT.

    Raises:
        UserError: if the folder has no result.
    """
    try:
        result = json.loads((run / "result.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--measured {run}: no result.json. Give the folder of a finished run.") from error
    hardware = result["config"]["hardware"]
    devices = int(hardware["devices"]) * int(hardware["num_nodes"])
    speeds: dict[str, float] = {}
    for stage in ("sft", "align"):
        by_step = [r["tokens_per_second"] for r in result["histories"].get(stage, []) if "tokens_per_second" in r]
        if by_step:
            speeds["train"] = statistics.median(by_step) / devices
    workers = _workers(result["config"])
    stages = {stage["name"]: stage for stage in result["stages"] if stage["seconds"] and not stage["resumed"]}
    generated = stages.get("generate", {"summary": {}})
    if tokens := generated["summary"].get("tokens"):
        speeds["generate"] = tokens / generated["seconds"] / workers
    if "embed" in stages and (responses := generated["summary"].get("responses")):
        speeds["embed"] = (responses + generated["summary"]["prompts"]) / stages["embed"]["seconds"] / workers
    if "reference" in stages and (tokens := stages["reference"]["summary"].get("tokens")):
        speeds["score"] = tokens / stages["reference"]["seconds"] / workers
    return speeds


def _workers(config: Mapping[str, Any]) -> float:
    """Return how many devices sampled, embedded and scored in parallel: the most Ray actors, times their GPUs."""
    actors = config.get("engine", {}).get("actors", 1)
    count = max(actors) if isinstance(actors, list) else actors
    gpus = config.get("engine", {}).get("gpus_per_actor")
    return float(count * (1 if gpus in (None, 0) else gpus))


def from_file(file: Path, hardware: str) -> dict[str, float]:
    """Read the speeds of this hardware from a file with entries `{hardware, model, source, speeds}`.

    Raises:
        UserError: if the file cannot be read, or lacks the hardware or its source.
    """
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({error}). Name a YAML file of speeds.") from error
    by_hardware = {str(entry["hardware"]): entry for entry in entries or []}
    if hardware not in by_hardware:
        known = ", ".join(by_hardware) or "nothing"
        raise UserError(
            f"--hardware {hardware}: not in {file}, which has {known}. Name one, or add it with its source."
        )
    if not by_hardware[hardware].get("source"):
        raise UserError(f"{file}: {hardware} has no source. Name where its speeds can be looked up.")
    return checked(by_hardware[hardware]["speeds"])


def checked(speeds: Mapping[str, Any]) -> dict[str, float]:
    """Return the speeds. Raise `UserError` if a name is unknown or a value is not a positive number."""
    for name, value in speeds.items():
        if name not in SPEEDS or not isinstance(value, int | float) or value <= 0:
            raise UserError(
                f"speed {name}={value}: the name must be one of {', '.join(SPEEDS)}, "
                "the value a positive number per second and device."
            )
    return {name: float(value) for name, value in speeds.items()}


def hours(needed: Work, speeds: Mapping[str, float]) -> float | None:
    """Return the device-hours; None if the speed or the amount is unknown."""
    if needed.kind is None:
        return 0.0
    if needed.amount is None or needed.kind not in speeds:
        return None
    return needed.amount / speeds[needed.kind] / 3600
