"""Check that the parts of a job fit together, before anything is computed. Each part also checks itself."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from selfcontrast.data.example import Example, Split
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.filters.pool import needs_target
from selfcontrast.generators.generate import Generation, Generator
from selfcontrast.models.adapters import Adapter, NoAdapter
from selfcontrast.models.loading import FromScratch, Model
from selfcontrast.training.hardware import Hardware

MAX_LR = {"all weights": 1e-4, "adapters": 2e-3}  # for pretrained models; a higher rate is probably a mistake

log = logging.getLogger(__name__)


def check_sampling(generator: Generator, model: Model, examples: Sequence[Example]) -> None:
    """Raise `UserError` if the generator's own model or system message does not fit the model's tokenizer."""
    if not isinstance(generator, Generation) or not (generator.model or generator.system):
        return
    renderer = Renderer(model.tokenizer())
    generator.check_rendering(renderer, examples)
    if generator.other and not isinstance(model, FromScratch):  # a model from scratch trains its tokenizer later
        generator.other.check_tokenizer(renderer)


def _samples_the_policy(generator: Generator) -> bool:
    """Return True if candidates come from the model that an iteration starts from and unchanged training prompts."""
    changed = getattr(generator, "system", None) or getattr(getattr(generator, "backend", None), "adapter", None)
    return generator.follows_model and not changed


def check_signals(parts: dict[str, Any], reference: str, verified: bool) -> None:
    """Raise `UserError` if the objective or the reference needs scores or log-probabilities that the job lacks."""
    objective, generator, hardware = parts["objective"], parts["generator"], parts["hardware"]
    name = f"objective={type(objective).__name__}"
    if objective.needs_scores and not verified and parts["filter"].reward_model is None:
        raise UserError(
            f"{name} needs scores, and this data has no verifier. Add +reward_model@filter.reward_model=classifier "
            "filter.reward_model.path=MODEL, or use another objective."
        )
    for needed, setting in ((objective.needs_sampler, name), (reference == "sampler", "reference=sampler")):
        if needed and not generator.has_log_probs:
            raise UserError(
                f"{setting} needs the sampler's log-probabilities, and generator={type(generator).__name__} has none. "
                "Use generator=hf or generator=vllm."
            )
    if reference == "sampler" and not _samples_the_policy(generator):
        raise UserError(
            "reference=sampler needs candidates sampled from the trained model with the training prompts, but "
            "generator.model, generator.system, or the backend's adapter or server changes them. Use reference=stored."
        )
    if (objective.needs_sampler or reference == "sampler") and parts["trainer"].max_length < generator.max_length:
        raise UserError(
            f"trainer.max_length={parts['trainer'].max_length} may truncate negatives, but the sampler's "
            f"log-probabilities cover whole responses. Raise it to generator.max_length={generator.max_length}."
        )
    if reference != "stored" and hardware.rescore_reference:
        raise UserError(
            f"reference={reference} cannot be used with hardware.rescore_reference=true. Use reference=stored."
        )
    if reference == "sampler" and parts["adapter"].at("align").quantised:
        raise UserError(
            "reference=sampler cannot be used with adapter=qlora, whose quantised base is not the model that samples. "
            "Use reference=stored."
        )
    sampling = getattr(generator, "temperature", 1.0), getattr(generator, "top_p", 1.0)
    if objective.needs_sampler and sampling != (1.0, 1.0):
        log.warning(
            "%s: p_gen is the sampler's probability at temperature 1 and top_p 1, but candidates are drawn with "
            "generator.temperature=%g, generator.top_p=%g",
            name,
            *sampling,
        )


def check_targets(parts: Mapping[str, Any], train: Sequence[Example], iterations: int) -> None:
    """Raise `UserError` if training prompts have no target and a part of the job needs one."""
    without = sum(not example.has_target for example in train)
    if parts["sft"].epochs and without == len(train):
        raise UserError(
            f"sft trains on targets, and none of {without:,} training prompts has one. Use sft=none with a fine-tuned "
            "model (model=hf model.path=MODEL), or add rows with targets."
        )
    if not (without and iterations):
        return
    reason = f"needs targets, and {without:,} of {len(train):,} training prompts have none"
    chosen, settings, objective = parts["chosen"], parts["filter"], parts["objective"]
    if chosen.target:
        raise UserError(f"chosen={type(chosen).__name__} {reason}. Use chosen=consensus or data.targets=required.")
    if needs_target(settings.selector):
        raise UserError(f"filter.selector={type(settings.selector).__name__} {reason}. Use filter=least_consistent.")
    if settings.on_shortage == "refill":
        raise UserError(f"filter.on_shortage=refill {reason}. Use filter.on_shortage=drop_everywhere.")
    if getattr(objective, "ranks_negatives", False) or getattr(objective, "rank_weights", None) is not None:
        name = (
            "objective.rank_weights" if hasattr(objective, "rank_weights") else f"objective={type(objective).__name__}"
        )
        raise UserError(
            f"{name} ranks by similarity to the target, so it {reason}. Use objective=self_contrast "
            "objective.rank_weights=null."
        )


def drop_ungradable(
    splits: Mapping[Split, Sequence[Example]], evaluated: str, verified: bool
) -> tuple[dict[Split, list[Example]], list[str]]:
    """Drop held-out prompts whose answers cannot be graded: those without a target, if there is no verifier.

    Args:
        evaluated: the split that is evaluated.

    Returns:
        The splits, and the ids of the dropped prompts.

    Raises:
        UserError: if no prompt is left to evaluate.
    """
    kept: dict[Split, list[Example]] = {"train": list(splits["train"])}
    dropped: list[str] = []
    for split in (name for name in splits if name != "train"):
        targetless = [example.id for example in splits[split] if not example.has_target]
        kept[split] = [example for example in splits[split] if verified or example.has_target]
        count = f"{len(targetless):,} of {len(splits[split]):,} prompts of the split {split} have no target"
        if split == evaluated and targetless and not kept[split]:
            raise UserError(
                f"evaluation: {count}, and without a verifier answers are compared with the target. Use a verifier "
                "(verifier=final_number data.answer_column=COLUMN), or add rows with targets."
            )
        if targetless and verified:
            log.info("data: %s. The verifier, judges and KL evaluate them; other measurements skip them.", count)
        elif targetless:
            log.warning("data: %s and there is no verifier, so the evaluation skips them.", count)
            dropped += targetless
    return kept, dropped


def check_iterations(cfg: DictConfig, generator: Generator, hardware: Hardware, adapter: Adapter, prompts: int) -> None:
    """Raise `UserError` if the settings of the iterations contradict each other, or there are too few prompts.

    Args:
        prompts: number of prompts in the training split.
    """
    if cfg.reference_over_iterations == "initial" and (hardware.rescore_reference or adapter.at("align").quantised):
        raise UserError(
            "reference_over_iterations=initial cannot be used with hardware.rescore_reference=true or adapter=qlora: "
            "their reference is the model that an iteration starts from. Use reference_over_iterations=previous."
        )
    if cfg.reference == "sampler" and (cfg.reference_over_iterations, cfg.negatives_over_iterations) != (
        "previous",
        "last",
    ):
        raise UserError(
            "reference=sampler takes log-probabilities from the policy that sampled, so it cannot be used with "
            "reference_over_iterations=initial or negatives_over_iterations=all. Use reference=stored."
        )
    if cfg.negatives_over_iterations == "all" and not (hasattr(generator, "prompts") and hasattr(generator, "seed")):
        raise UserError(
            "negatives_over_iterations=all samples every iteration with another seed, and generator="
            f"{type(generator).__name__} has no settings `prompts` and `seed`. Use negatives_over_iterations=last."
        )
    if cfg.prompts_over_iterations == "same":
        return
    if cfg.negatives_over_iterations == "all":
        raise UserError(
            "negatives_over_iterations=all needs the prompts of earlier iterations. Use prompts_over_iterations=same, "
            "or negatives_over_iterations=last."
        )
    count, limit = getattr(generator, "prompts", None), prompts // cfg.iterations
    if count is None or count > limit:
        raise UserError(
            f"prompts_over_iterations=disjoint: {cfg.iterations} iterations share {prompts:,} training prompts. "
            f"Set generator.prompts, now {count}, to at most {limit:,}."
        )


def check_checkpoints(parts: dict[str, Any], prompts: int) -> None:
    """Raise `UserError` if `evaluation.checkpoints` exceeds the number of steps that preference training can have.

    This bound assumes that every prompt is used. The stages `reference` and `align` check the exact number.

    Args:
        prompts: number of prompts in the training split.
    """
    optim, chosen = parts["trainer"], parts["chosen"]
    if optim.tokens is not None:  # with a limit on tokens, the number of steps depends on lengths
        return
    limit = getattr(parts["generator"], "prompts", None)
    groups = min(prompts, limit or prompts) * (2 if chosen.target and chosen.candidate else 1)
    steps = -(-groups // optim.batch_size) * optim.epochs
    if (checkpoints := parts["evaluation"].checkpoints) > steps:
        raise UserError(
            f"evaluation.checkpoints={checkpoints}, but preference training has at most {steps} steps. Lower it to "
            f"{steps} or less."
        )


def warn_of_learning_rates(parts: dict[str, Any], iterations: int) -> None:
    """Warn of learning rates that fit only the built-in model with random weights."""
    for name, stage, used in (("sft", "sft", parts["sft"].epochs > 0), ("trainer", "align", iterations > 0)):
        limit = MAX_LR["all weights" if isinstance(parts["adapter"].at(stage), NoAdapter) else "adapters"]
        if used and parts[name].lr > limit:
            log.warning(
                "%s.lr=%g suits a small model with random weights and would ruin a pretrained one. "
                "Use %s=paper, or lower it.",
                name,
                parts[name].lr,
                name,
            )


def check_lengths(parts: dict[str, Any], iterations: int) -> None:
    """Warn if a maximum length exceeds the model's number of positions. Training refuses longer rows."""
    positions = parts["model"].positions()
    bounds = {
        "sft.max_length": parts["sft"].max_length if parts["sft"].epochs else 0,
        "trainer.max_length": parts["trainer"].max_length if iterations else 0,
        "generator.max_length": parts["generator"].max_length if iterations else 0,
        "evaluation.max_length": parts["evaluation"].max_length,
    }
    if positions is not None:
        parts["evaluation"].lm_eval.check_positions(positions)
    if positions is not None and (longer := [f"{name}={n}" for name, n in bounds.items() if n > positions]):
        log.warning("%s: more than the model's %d positions. Lower max_length.", ", ".join(longer), positions)
