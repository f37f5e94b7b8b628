"""Estimate the work of a plan's stages from the data and the settings: tokens or texts, and bytes on the disk."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfcontrast.config import Parts
from selfcontrast.evaluation.benchmarks.reward import RewardWins
from selfcontrast.evaluation.compare import BASELINE
from selfcontrast.models.loading import FromScratch
from selfcontrast.planning.plan import Planned, PlannedStage
from selfcontrast.report.text import UNKNOWN, count, large
from selfcontrast.training.optim import OptimConfig

CHARACTERS_PER_TOKEN = 4  # roughly, for English text; no tokenizer is loaded
KINDS = {  # the kind of speed of each long stage
    "sft": "train",
    "align": "train",
    "generate": "generate",
    "evaluate": "generate",
    "answers": "generate",
    "score": "score",
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

    @property
    def assumption(self) -> str:
        """What the estimates assume, without a full stop."""
        lengths = [
            UNKNOWN if tokens is None else f"{tokens:.0f}" for tokens in (self.prompt_tokens, self.response_tokens)
        ]
        return (
            f"Assumed: {count(self.prompts)} training prompts of {lengths[0]} tokens and responses of {lengths[1]} "
            "(4 characters per token; without stored candidates, responses are as long as targets)"
        )


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

    @property
    def text(self) -> str:
        """The amount with its unit, such as "12.3 M tokens"; "" if the stage counts as free."""
        if self.kind is None:
            return ""
        return UNKNOWN if self.amount is None else f"{large(self.amount)} {UNITS[self.kind]}"


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
    """Return the work of a stage that is not in the store.

    Filtering and comparing take CPU minutes and count as 0. So do judges, whose answers' lengths are unknown.
    """
    rewarded = isinstance(parts.evaluation.benchmarks.get(step.label.partition(" ")[0]), RewardWins)
    if None in (sizes.prompts, sizes.evaluated, sizes.prompt_tokens, sizes.response_tokens):
        disk = None if step.stage in ("generate", "embed", "reference") else _policy_bytes(step, parts, sizes)
        return Work("score" if rewarded else KINDS.get(step.stage), None, disk)
    prompt, response, evaluated = sizes.prompt_tokens or 0, sizes.response_tokens or 0, sizes.evaluated or 0
    prompts = sizes.prompts or 0
    used_prompts = min(prompts, getattr(parts.generator, "prompts", None) or prompts)
    sampled, policy = parts.generator.samples, _policy_bytes(step, parts, sizes)
    pool = sampled * (_iteration(step, parts) if parts.negatives_over_iterations == "all" else 1)
    match step.stage:
        case "sft":
            return Work("train", _training_tokens(parts.sft, prompts * (prompt + response)), policy)
        case "generate":
            tokens = used_prompts * sampled * response
            local = getattr(parts.generator, "backend", parts.generator).follows_model  # else another server's work
            return Work("generate" if local else None, tokens if local else 0, tokens * CANDIDATE_BYTES)
        case "gather":
            return Work(None, 0, used_prompts * pool * response * CANDIDATE_BYTES)
        case "embed":
            width = DIMENSIONS.get(getattr(parts.encoder, "path", ""), getattr(parts.encoder, "dimensions", 1024))
            return Work("embed", used_prompts * (pool + 1), used_prompts * (pool + 1) * width * 2)
        case "score":  # a reward model reads each response with its prompt
            return Work("score", used_prompts * (pool + 1) * (prompt + response), 0)
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


def _iteration(step: PlannedStage, parts: Parts) -> int:
    """Return the number of the stage's iteration, which is in the labels of all but the last."""
    prefix, slash, _ = step.label.partition("/")
    return int(prefix.removeprefix("iteration-")) if slash and prefix.startswith("iteration-") else parts.iterations


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
