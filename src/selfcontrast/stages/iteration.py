"""The stages of an iteration: generate, embed, score, filter, reference and align."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from selfcontrast.data.candidates import Negative, read_chosen, read_negatives, texts_by_prompt
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.filters import diagnostics, embed, score
from selfcontrast.filters import filter as filter_stage
from selfcontrast.generators import gather, generate
from selfcontrast.job import Job
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.models.packing import Group
from selfcontrast.stages.input_check import check_unchanged
from selfcontrast.store import Artifact, Stage, settings_of
from selfcontrast.training import align, reference
from selfcontrast.training.fit import StepData
from selfcontrast.training.groups import (
    StoredScores,
    chosen_scores,
    example_of,
    nearest_first,
    negatives_by_group,
    preference_groups,
    sampler_reference,
    select_scores,
    select_signals,
)
from selfcontrast.training.steps import length
from selfcontrast.training.training import Training

log = logging.getLogger(__name__)


class Iteration:
    """The stages from a model to the policy aligned from it. Each stage requests its inputs.

    Args:
        start: the fine-tuned model, or the policy of the previous iteration.
        prefix: prefix of the stages' labels; empty for the last iteration.
        before: the previous iteration; None for the first.
    """

    def __init__(self, job: Job, start: Artifact, prefix: str, before: "Iteration | None" = None) -> None:
        self.job = job
        self.parts = job.parts
        self.start = start
        self.prefix = prefix
        self.before = before
        self.number: int = before.number + 1 if before else 1
        self.initial: Artifact = before.initial if before else start
        self._examples: dict[str, Example] = {}

    @cached_property
    def candidates(self) -> Artifact:
        """The pool of negatives: this iteration's responses, and those of earlier iterations if so configured."""
        if self.before is None or self.parts.negatives_over_iterations == "last":
            return self.sampled
        before, sampled = self.before.candidates, self.sampled

        def compute(folder: Path) -> Mapping[str, Any]:
            offset = (self.number - 1) * self.parts.generator.samples
            return gather.gather(folder, before.path / generate.FILE, sampled.path / generate.FILE, offset)

        inputs = {"before": before, "own": sampled}
        return self._get(Stage("gather", gather.VERSION, {}, inputs, compute, gather.__name__))

    @cached_property
    def sampled(self) -> Artifact:
        """This iteration's responses."""
        p = self.parts
        settings = settings_of(p.generator)
        part = self.number - 1 if p.prompts_over_iterations == "disjoint" else 0
        # With the random numbers of an earlier iteration, a similar policy would repeat that iteration's responses.
        anew = p.negatives_over_iterations == "all" and self.number > 1

        def compute(folder: Path) -> Mapping[str, Any]:
            generator: Any = p.generator  # `check_iterations` requires `prompts` and `seed` where they are used
            model, examples = self.start.path / "model", p.splits["train"]
            if part or anew:
                examples = generate.choose(examples, generator.prompts, generator.seed, part)
            if anew:
                generator = replace(generator, prompts=None, seed=_seed_of(generator.seed, self.number))
            summary: Mapping[str, Any] = generator.generate(folder, model, examples, p.engine, p.hardware.device)
            check_unchanged("generator", settings, settings_of(p.generator))
            return summary

        key = {
            "generator": p.generator,
            **({"part": part} if part else {}),
            **({"iteration": self.number} if anew else {}),
        }
        return self._get(Stage("generate", generate.VERSION, key, {"model": self.start}, compute, generate.__name__))

    @cached_property
    def embeddings(self) -> Artifact:
        p = self.parts

        def compute(folder: Path) -> Mapping[str, Any]:
            texts = texts_by_prompt(self.candidates.path / generate.FILE)
            prompts = ((self.example(name).target, candidates) for name, candidates in texts)
            return embed.embed(folder, p.encoder, p.engine, prompts, p.hardware.device)

        inputs = {"candidates": self.candidates}
        return self._get(Stage("embed", embed.VERSION, {"encoder": p.encoder}, inputs, compute, embed.__name__))

    @cached_property
    def rewards(self) -> Artifact:
        p = self.parts
        model = p.filter.reward_model
        assert model is not None, "called only if there is a reward model"

        def compute(folder: Path) -> Mapping[str, Any]:
            texts = texts_by_prompt(self.candidates.path / generate.FILE)
            prompts = ((self.example(name), candidates) for name, candidates in texts)
            return score.score(folder, model, p.engine, prompts, p.hardware.device)

        inputs = {"candidates": self.candidates}
        return self._get(Stage("score", score.VERSION, {"reward_model": model}, inputs, compute, score.__name__))

    @cached_property
    def negatives(self) -> Artifact:
        p = self.parts
        verifier = p.grader
        inputs = {"candidates": self.candidates, "embeddings": self.embeddings}
        scorer: score.CandidateScorer | None = score.VerifierScorer(verifier) if verifier else None
        if p.filter.reward_model is not None:
            inputs["rewards"] = self.rewards
            scorer = score.RewardScorer(self.rewards.path)

        def compute(folder: Path) -> Mapping[str, Any]:
            candidates = self.candidates.path / generate.FILE
            examples = {name: self.example(name) for name, _ in texts_by_prompt(candidates)}
            embedded = self.embeddings.path
            return filter_stage.select_negatives(folder, p.filter, examples, candidates, embedded, scorer, p.chosen)

        settings = {"filter": p.filter, "verifier": p.verifier, **({"chosen": p.chosen} if p.chosen.candidate else {})}
        artifact = self._get(Stage("filter", filter_stage.VERSION, settings, inputs, compute, filter_stage.__name__))
        if artifact.summary:
            for line in diagnostics.lines(artifact.summary):
                log.info("%-24s %s", "", line)
        return artifact

    @cached_property
    def reference(self) -> Artifact:
        """Reference scores of every negative of the pool, for any K: one computation serves a whole sweep.

        If the sampler has scored the negatives, only targets are scored.
        """
        p = self.parts
        model = self.initial if p.reference_over_iterations == "initial" else self.start
        targets_only = p.reference == "sampler"

        def compute(folder: Path) -> Mapping[str, Any]:
            ranked = read_negatives(self.negatives.path / filter_stage.FILE)
            self._check_checkpoints(ranked)
            groups, _ = self._groups(dict.fromkeys(ranked, ()) if targets_only else ranked)
            scoring = reference.Scoring(model.path / "model", p.model.dtype, p.hardware)
            reference.score_reference(folder, p.engine, scoring, groups, p.hardware.device)
            return {"tokens": sum(map(length, groups))}

        settings = {
            "max_length": p.trainer.max_length,
            "precision": p.hardware.precision,
            **({"targets_only": True} if targets_only else {}),
        }
        inputs = {"model": model, "negatives": self.negatives}
        return self._get(Stage("reference", reference.VERSION, settings, inputs, compute, reference.__name__))

    @cached_property
    def policy(self) -> Artifact:
        p = self.parts

        def compute(folder: Path) -> Mapping[str, Any]:
            ranked = read_negatives(self.negatives.path / filter_stage.FILE)
            used = self._used(ranked)
            groups, without_room = self._groups(used)
            if without_room:
                log.warning("align: %d groups are longer than trainer.max_length and are left out", without_room)
            stored = self._stored_scores(groups, used)
            report = self.job.report(self.prefix + "align")
            checkpoints = p.evaluation.checkpoints
            training = Training(p.adapter.at("align"), p.trainer, p.hardware, p.seed, report, checkpoints)
            start = self.start.path / "model"
            summary = align.align(folder, start, p.model.dtype, groups, stored, p.objective, training)
            return {**summary, **_prompt_counts(groups, used)} if summary else summary

        settings = {
            "negatives": self._negatives_per_prompt,
            "objective": p.objective,
            "adapter": p.adapter.at("align"),
            "optim": p.trainer,
            "hardware": p.hardware,
            **({"rescore_reference": True} if p.hardware.rescore_reference else {}),
            **({"reference": p.reference} if p.reference != "stored" else {}),
            "seed": p.seed,
            **({"checkpoints": p.evaluation.checkpoints} if p.evaluation.checkpoints else {}),
        }
        inputs = {"model": self.start, "negatives": self.negatives}
        if p.reference != "none":
            inputs["reference"] = self.reference
        return self._get(Stage("align", align.VERSION, settings, inputs, compute, align.__name__), trained=True)

    def _stored_scores(self, groups: Sequence[Group], used: Mapping[str, Sequence[Negative]]) -> StoredScores:
        p, folder = self.parts, self.negatives.path
        negatives = negatives_by_group(groups, used)
        scores = chosen_scores(filter_stage.target_scores(folder), read_chosen(folder))
        signals = select_signals(p.objective, groups, negatives, scores)
        if p.reference == "none":
            zeros = {group.id: torch.zeros(len(group.responses)) for group in groups}
            return StoredScores(zeros, signals, reference_is_model=False)
        pool = reference.read_reference(self.reference.path)
        scored = (
            sampler_reference(pool, groups, negatives) if p.reference == "sampler" else select_scores(pool, negatives)
        )
        is_start = p.reference_over_iterations != "initial" or self.before is None
        return StoredScores(scored, signals, reference_is_start=is_start)

    def _used(self, ranked: Mapping[str, Sequence[Negative]]) -> dict[str, list[Negative]]:
        """Return the negatives that training uses, by prompt."""
        return {name: nearest_first(negatives, self._negatives_per_prompt) for name, negatives in ranked.items()}

    @property
    def _negatives_per_prompt(self) -> int:
        """Negatives per prompt in training: K, or 0 for continued supervised fine-tuning."""
        return self.parts.negatives if self.parts.objective.uses_negatives else 0

    def _check_checkpoints(self, ranked: Mapping[str, Sequence[Negative]]) -> None:
        """Raise `UserError` now if `align`, which comes next, will have fewer steps than checkpoints."""
        p = self.parts
        if p.evaluation.checkpoints:
            groups, _ = self._groups(self._used(ranked))
            steps = StepData(groups, [], p.trainer, p.hardware, p.seed).steps()
            align.checkpoint_steps(len(steps), p.evaluation.checkpoints)

    def example(self, name: str) -> Example:
        """Return a training example with its answers decoded from their tokens, as candidates are."""
        if name not in self._examples:
            self._examples[name] = self._renderer.as_read(self.job.train[name])
        return self._examples[name]

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(load_tokenizer(self.start.path / "model"))

    def _groups(self, used: Mapping[str, Sequence[Negative]]) -> tuple[list[Group], int]:
        chosen, max_length = read_chosen(self.negatives.path), self.parts.trainer.max_length
        return preference_groups(self._renderer, self.parts.splits["train"], used, max_length, chosen)

    def _get(self, stage: Stage, trained: bool = False) -> Artifact:
        return self.job.get(stage, self.prefix + stage.name, trained)


def _seed_of(seed: int, iteration: int) -> int:
    """Return a seed for an iteration's samples. It is a hash, so it is not the seed of another job of a sweep."""
    return int.from_bytes(hashlib.sha256(f"{seed} {iteration}".encode()).digest()[:4], "big")


def _prompt_counts(groups: Sequence[Group], used: Mapping[str, Sequence[Negative]]) -> dict[str, Any]:
    """Count prompts and groups if some prompts have two groups. Otherwise return {}: the count of `align` is right."""
    prompts = len({example_of(group.id, used) for group in groups})
    return {"prompts": prompts, "groups": len(groups)} if prompts < len(groups) else {}
