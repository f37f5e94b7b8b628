"""The stages of a round: generate, embed, score, filter, reference and align."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from selfcontrast.data.candidates import Negative, read_negatives, texts_by_prompt
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.filters import diagnostics, embed, negatives, score
from selfcontrast.generators import stage as generation
from selfcontrast.job import Job
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.models.packing import Group
from selfcontrast.stages.unchanged import check_unchanged
from selfcontrast.store import Artifact, Stage, settings_of
from selfcontrast.training import align, reference
from selfcontrast.training.groups import in_order, nearest_first, preference_groups
from selfcontrast.training.steps import length
from selfcontrast.training.training import Training

log = logging.getLogger(__name__)


class Round:
    """The stages from a model to the policy that is aligned from it. Each asks for those it is made from.

    Args:
        start: the fine-tuned model, or the policy of the round before.
        prefix: of the stages' labels, where this is not the last round.
    """

    def __init__(self, job: Job, start: Artifact, prefix: str) -> None:
        self.job = job
        self.parts = job.parts
        self.start = start
        self.prefix = prefix
        self._read: dict[str, Example] = {}

    @cached_property
    def candidates(self) -> Artifact:
        p = self.parts
        before = settings_of(p.generator)

        def compute(folder: Path) -> Mapping[str, Any]:
            model = self.start.path / "model"
            summary = p.generator.generate(folder, model, p.splits["train"], p.engine, p.hardware.device)
            check_unchanged("generator", before, settings_of(p.generator))
            return summary

        settings = {"generator": p.generator}
        return self._get(
            Stage("generate", generation.VERSION, settings, {"model": self.start}, compute, generation.__name__)
        )

    @cached_property
    def embeddings(self) -> Artifact:
        p = self.parts

        def compute(folder: Path) -> Mapping[str, Any]:
            texts = texts_by_prompt(self.candidates.path / generation.FILE)
            prompts = ((self.example(name).target, found) for name, found in texts)
            return embed.embed(folder, p.encoder, p.engine, prompts, p.hardware.device)

        inputs = {"candidates": self.candidates}
        return self._get(Stage("embed", embed.VERSION, {"encoder": p.encoder}, inputs, compute, embed.__name__))

    @cached_property
    def rewards(self) -> Artifact:
        p = self.parts
        model = p.filter.reward_model
        assert model is not None, "asked for where there is one alone"

        def compute(folder: Path) -> Mapping[str, Any]:
            texts = texts_by_prompt(self.candidates.path / generation.FILE)
            prompts = ((self.example(name), found) for name, found in texts)
            return score.score(folder, model, p.engine, prompts, p.hardware.device)

        inputs = {"candidates": self.candidates}
        return self._get(Stage("score", score.VERSION, {"reward_model": model}, inputs, compute, score.__name__))

    @cached_property
    def negatives(self) -> Artifact:
        p = self.parts
        verifier = p.data.verifier()
        inputs = {"candidates": self.candidates, "embeddings": self.embeddings}
        judge: score.Scorer | None = score.Verified(verifier) if verifier else None
        if p.filter.reward_model is not None:
            inputs["rewards"] = self.rewards
            judge = score.Rewarded(self.rewards.path)

        def compute(folder: Path) -> Mapping[str, Any]:
            candidates = self.candidates.path / generation.FILE
            examples = {name: self.example(name) for name, _ in texts_by_prompt(candidates)}
            return negatives.select_negatives(folder, p.filter, examples, candidates, self.embeddings.path, judge)

        artifact = self._get(
            Stage("filter", negatives.VERSION, {"filter": p.filter}, inputs, compute, negatives.__name__)
        )
        if artifact.summary:
            for line in diagnostics.lines(artifact.summary):
                log.info("%-24s %s", "", line)
        return artifact

    @cached_property
    def reference(self) -> Artifact:
        """Scores of every negative of the pool, whatever K: one computation for a whole sweep."""
        p = self.parts

        def compute(folder: Path) -> Mapping[str, Any]:
            ranked = read_negatives(self.negatives.path / negatives.FILE)
            groups, _ = self._groups(ranked)
            scoring = reference.Scoring(self.start.path / "model", p.model.precision, p.hardware)
            reference.score_reference(folder, p.engine, scoring, groups, p.hardware.device)
            return {"tokens": sum(map(length, groups))}

        settings = {"cutoff": p.trainer.cutoff, "precision": p.hardware.precision}
        inputs = {"model": self.start, "negatives": self.negatives}
        return self._get(Stage("reference", reference.VERSION, settings, inputs, compute, reference.__name__))

    @cached_property
    def policy(self) -> Artifact:
        p = self.parts

        def compute(folder: Path) -> Mapping[str, Any]:
            ranked = read_negatives(self.negatives.path / negatives.FILE)
            used = {name: nearest_first(found, self._used) for name, found in ranked.items()}
            groups, without_room = self._groups(used)
            if without_room:
                log.warning("align: %d prompts are longer than trainer.cutoff: left out", without_room)
            scored = in_order(reference.read_reference(self.reference.path), used)
            report = self.job.report(self.prefix + "align")
            checkpoints = p.evaluation.checkpoints
            training = Training(p.adapter.at("align"), p.trainer, p.hardware, p.seed, report, checkpoints)
            start = self.start.path / "model"
            return align.align(folder, start, p.model.precision, groups, scored, p.objective, training)

        settings = {
            "negatives": self._used,
            "objective": p.objective,
            "adapter": p.adapter.at("align"),
            "recipe": p.trainer,
            "hardware": p.hardware,
            **({"rescore_reference": True} if p.hardware.rescore_reference else {}),
            "seed": p.seed,
            **({"checkpoints": p.evaluation.checkpoints} if p.evaluation.checkpoints else {}),
        }
        inputs = {"model": self.start, "negatives": self.negatives, "reference": self.reference}
        return self._get(Stage("align", align.VERSION, settings, inputs, compute, align.__name__), trained=True)

    @property
    def _used(self) -> int:
        """Negatives per prompt that training looks at: not K, where it continues supervised fine-tuning."""
        return self.parts.negatives if self.parts.objective.uses_negatives else 0

    def example(self, name: str) -> Example:
        """A training example, with its answers as candidates have theirs: the text of their tokens."""
        if name not in self._read:
            self._read[name] = self._renderer.as_read(self.job.train[name])
        return self._read[name]

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(load_tokenizer(self.start.path / "model"))

    def _groups(self, used: Mapping[str, Sequence[Negative]]) -> tuple[list[Group], int]:
        return preference_groups(self._renderer, self.parts.splits["train"], used, self.parts.trainer.cutoff)

    def _get(self, stage: Stage, trained: bool = False) -> Artifact:
        return self.job.get(stage, self.prefix + stage.name, trained)
