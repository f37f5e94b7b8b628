"""The stages that measure a policy: evaluate, answers and benchmark."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation import divergence, evaluate
from selfcontrast.evaluation.benchmarks import answers, benchmark
from selfcontrast.evaluation.benchmarks.benchmark import Benchmark, Subject
from selfcontrast.evaluation.compare import BASELINE
from selfcontrast.evaluation.curve import CurveModel
from selfcontrast.generators.backend import Responder
from selfcontrast.job import Job
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.stages.unchanged import check_unchanged
from selfcontrast.store import Artifact, Stage, settings_of
from selfcontrast.training.align import checkpoint_folder

log = logging.getLogger(__name__)


def scores_of(job: Job, policy: Artifact, name: str, checkpoint: int | None = None) -> Artifact:
    """Score a policy, or a checkpoint of its training, on the held-out prompts; the report calls it `name`."""
    p = job.parts
    verifier = p.grader
    evaluation = p.evaluation if checkpoint is None else p.evaluation.of_checkpoints()
    settings = {
        "evaluation": evaluation,
        "dtype": p.model.dtype,
        "data": p.data,
        "verifier": p.verifier,
        "encoder": None if verifier else p.encoder,
        **({} if checkpoint is None else {"checkpoint": checkpoint}),
    }

    def compute(folder: Path) -> Mapping[str, Any]:
        measured = evaluate.Policy(name, model_of(policy, checkpoint), p.model.dtype, p.hardware.device)
        responder = Responder(evaluation.backend, p.engine, p.hardware.device)
        examples = evaluation.choose(p.splits)
        return evaluate.evaluate(folder, evaluation, measured, examples, verifier, p.encoder, responder)

    stage = Stage("evaluate", evaluate.VERSION, settings, {"policy": policy}, compute, evaluate.__name__)
    return job.get(stage, f"evaluate {name}")


def divergence_of(
    job: Job, scored: Artifact, policy: Artifact, sft: Artifact, name: str, checkpoint: int | None = None
) -> Artifact | None:
    """KL(policy || SFT) and entropy of the policy, or of a checkpoint of its training, from the answers in `scored`.

    None where no decoding gives samples of the policy itself.
    """
    p = job.parts
    way = p.evaluation.sampled
    if way is None:
        return None
    reference = None if policy is sft else sft
    settings: dict[str, Any] = {"decoding": way.name, "weights": p.model.dtype, "arithmetic": p.hardware.precision}
    if checkpoint is not None:
        settings["checkpoint"] = checkpoint
    inputs = {"answers": scored, "policy": policy, **({"reference": reference} if reference else {})}

    def compute(folder: Path) -> Mapping[str, Any]:
        base = reference.path / "model" if reference else None
        models = divergence.Models(model_of(policy, checkpoint), base, p.model.dtype, p.hardware)
        examples = p.evaluation.choose(p.splits)
        return divergence.measure(folder, scored.path, way.name, models, examples, p.engine)

    stage = Stage("divergence", divergence.VERSION, settings, inputs, compute, divergence.__name__)
    return job.get(stage, f"divergence {name}")


def model_of(policy: Artifact, checkpoint: int | None) -> Path:
    """The folder of a policy's model, or of a checkpoint of its training."""
    return policy.path / "model" if checkpoint is None else checkpoint_folder(policy.path, checkpoint)


@dataclass(frozen=True)
class Scored:
    """A model, its scores, and its distance from the fine-tuned model, where that can be estimated.

    Attributes:
        policy: the fine-tuned model, or what a training has left.
        checkpoint: the number of the training's checkpoint; None for the finished policy.
        earlier: the models before it: the fine-tuned one and the policies of earlier rounds.
    """

    system: str
    policy: Artifact
    checkpoint: int | None
    scores: Artifact
    divergence: Artifact | None
    earlier: Sequence[Artifact]

    @classmethod
    def of(
        cls,
        job: Job,
        policy: Artifact,
        sft: Artifact,
        name: str,
        earlier: Sequence[Artifact],
        checkpoint: int | None = None,
    ) -> "Scored":
        """Score a policy, or a checkpoint of its training, and measure its distance."""
        system = name if checkpoint is None else f"{name} {checkpoint}/{job.parts.evaluation.checkpoints}"
        scored = scores_of(job, policy, system, checkpoint)
        apart = divergence_of(job, scored, policy, sft, system, checkpoint)
        return cls(system, policy, checkpoint, scored, apart, earlier)

    @property
    def step(self) -> int:
        """Steps of preference training so far, those of earlier rounds included; 0 for the fine-tuned model."""
        done = self.earlier if self.checkpoint else [*self.earlier, self.policy]
        steps = sum(int(policy.summary["steps"]) for policy in done if policy.stage == "align")
        return steps + (int(self.policy.summary["checkpoints"][self.checkpoint - 1]) if self.checkpoint else 0)

    def measured(self) -> CurveModel:
        folder = self.divergence.path if self.divergence else None
        return CurveModel(self.system, self.step, self.checkpoint is not None, self.scores.path, folder)


def measured_by(
    job: Job, name: str, trained: Mapping[str, Artifact], systems: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """Per system the results of the benchmark that the evaluation calls so; none where it does not apply.

    Args:
        trained: the systems' models; without the baseline's, what compares with it is left out.
        systems: their scores.
    """
    p = job.parts
    measure: Benchmark = p.evaluation.benchmarks[name]
    examples = p.evaluation.choose(p.splits)
    if reason := measure.skip_reason(examples, p.grader):
        log.info("%-24s left out: %s", name, reason)
        return {}
    if measure.relative and (BASELINE not in systems or len(systems) == 1):
        return {}
    settings = {"benchmark": measure, **({} if measure.own_prompts() else {"data": p.data, "verifier": p.verifier})}
    asked, decoding = measure.answer_request(examples), p.evaluation.ways[0].name
    if asked:
        systems = {label: answers_to(job, asked, name, trained[label], label) for label in systems}
        decoding = answers.OWN
    found = {}
    for label, answered in systems.items():
        base = None if label == BASELINE else systems.get(BASELINE)
        if measure.relative and base is None:
            continue
        judge_context = job.judge_context(f"{name} {label}")
        subject = Subject(label, answered.path, base.path if base else None, examples, decoding, judge_context)
        inputs = {"answers": answered, **({"baseline": base} if measure.relative and base else {})}
        where, model = f"evaluation.benchmarks.{name}", trained[label].path / "model"
        compute = partial(_measured, measure, where, settings_of(measure), subject, model)
        stage = Stage("benchmark", benchmark.VERSION, settings, inputs, compute, benchmark.__name__)
        found[label] = job.get(stage, f"{name} {label}")
        if found[label].cached:
            job.budget.count(found[label].key, found[label].summary.get("cost") or 0.0)
    return found


def _measured(
    measure: Benchmark, name: str, before: Mapping[str, Any], subject: Subject, model: Path, folder: Path
) -> Mapping[str, Any]:
    """Run a benchmark on examples whose answers are the text of their tokens, as a policy's own answers are."""
    renderer = Renderer(load_tokenizer(model))
    read = [renderer.as_read(example) for example in subject.examples]
    summary = measure.run(folder, subject=replace(subject, examples=read))
    check_unchanged(name, before, settings_of(measure))
    return summary


def answers_to(job: Job, asked: answers.AnswerRequest, name: str, policy: Artifact, label: str) -> Artifact:
    """A policy's answers to a benchmark's own questions: the same for every judge."""
    p = job.parts
    settings = {"asked": asked, "backend": p.evaluation.backend}

    def compute(folder: Path) -> Mapping[str, Any]:
        responder = Responder(p.evaluation.backend, p.engine, p.hardware.device)
        return asked.answer(folder, policy.path / "model", responder, f"{name} answers {label}")

    stage = Stage("answers", answers.VERSION, settings, {"policy": policy}, compute, answers.__name__)
    return job.get(stage, f"{name} answers {label}")
