"""The stages that measure a policy: evaluate, divergence, answers and benchmark."""

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
from selfcontrast.stages.input_check import check_unchanged
from selfcontrast.store import Artifact, Stage, settings_of
from selfcontrast.training.align import checkpoint_folder

log = logging.getLogger(__name__)


def scores_of(job: Job, policy: Artifact, name: str, checkpoint: int | None = None) -> Artifact:
    """Score a policy, or a checkpoint of its training, on the held-out prompts. The report calls it `name`."""
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
        subject = evaluate.Policy(name, model_of(policy, checkpoint), p.model.dtype, p.hardware.device)
        responder = Responder(evaluation.backend, p.engine, p.hardware.device)
        examples = evaluation.choose(p.splits)
        return evaluate.evaluate(folder, evaluation, subject, examples, verifier, p.encoder, responder)

    stage = Stage("evaluate", evaluate.VERSION, settings, {"policy": policy}, compute, evaluate.__name__)
    return job.get(stage, f"evaluate {name}")


def divergence_of(
    job: Job, scored: Artifact, policy: Artifact, sft: Artifact, name: str, checkpoint: int | None = None
) -> Artifact | None:
    """Estimate KL(policy || SFT) and entropy of a policy, or of a checkpoint of its training, from answers in `scored`.

    Return None if no decoding gives samples of the policy itself.
    """
    p = job.parts
    decoding = p.evaluation.sampled
    if decoding is None:
        return None
    reference = None if policy is sft else sft
    settings: dict[str, Any] = {
        "decoding": decoding.name,
        "weights": p.model.dtype,
        "arithmetic": p.hardware.precision,
    }
    if checkpoint is not None:
        settings["checkpoint"] = checkpoint
    inputs = {"answers": scored, "policy": policy, **({"reference": reference} if reference else {})}

    def compute(folder: Path) -> Mapping[str, Any]:
        base = reference.path / "model" if reference else None
        models = divergence.Models(model_of(policy, checkpoint), base, p.model.dtype, p.hardware)
        examples = p.evaluation.choose(p.splits)
        return divergence.measure(folder, scored.path, decoding.name, models, examples, p.engine)

    stage = Stage("divergence", divergence.VERSION, settings, inputs, compute, divergence.__name__)
    return job.get(stage, f"divergence {name}")


def model_of(policy: Artifact, checkpoint: int | None) -> Path:
    """Return the folder of a policy's model, or of a checkpoint of its training."""
    return policy.path / "model" if checkpoint is None else checkpoint_folder(policy.path, checkpoint)


@dataclass(frozen=True)
class SystemScores:
    """A model's scores, and its divergence from the fine-tuned model if that can be estimated.

    Attributes:
        policy: the fine-tuned model, or the artifact of a training stage.
        checkpoint: the number of the training checkpoint; None for the finished policy.
        earlier: the models before this one: the fine-tuned model and the policies of earlier iterations.
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
    ) -> "SystemScores":
        """Score a policy, or a checkpoint of its training, and measure its divergence."""
        system = name if checkpoint is None else f"{name} {checkpoint}/{job.parts.evaluation.checkpoints}"
        scored = scores_of(job, policy, system, checkpoint)
        divergence = divergence_of(job, scored, policy, sft, system, checkpoint)
        return cls(system, policy, checkpoint, scored, divergence, earlier)

    @property
    def step(self) -> int:
        """Steps of preference training so far, including earlier iterations; 0 for the fine-tuned model."""
        finished = self.earlier if self.checkpoint else [*self.earlier, self.policy]
        steps = sum(int(policy.summary["steps"]) for policy in finished if policy.stage == "align")
        return steps + (int(self.policy.summary["checkpoints"][self.checkpoint - 1]) if self.checkpoint else 0)

    def measured(self) -> CurveModel:
        folder = self.divergence.path if self.divergence else None
        return CurveModel(self.system, self.step, self.checkpoint is not None, self.scores.path, folder)


def benchmark_results(
    job: Job, name: str, trained: Mapping[str, Artifact], systems: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """Run the benchmark called `name` for each system. Return results by system; none if it does not apply.

    Args:
        trained: the systems' models.
        systems: the systems' scores. Without the baseline's scores, a comparison with the baseline is left out.
    """
    p = job.parts
    task: Benchmark = p.evaluation.benchmarks[name]
    examples = p.evaluation.choose(p.splits)
    if reason := task.skip_reason(examples, p.grader):
        log.info("%-24s left out: %s", name, reason)
        return {}
    if task.relative and (BASELINE not in systems or len(systems) == 1):
        return {}
    settings = {"benchmark": task, **({} if task.own_prompts() else {"data": p.data, "verifier": p.verifier})}
    questions, decoding = task.answer_request(examples), p.evaluation.headline_decoding
    if questions:
        systems = {label: benchmark_answers(job, questions, name, trained[label], label) for label in systems}
        decoding = answers.OWN
    results = {}
    for label, answered in systems.items():
        base = None if label == BASELINE else systems.get(BASELINE)
        if task.relative and base is None:
            continue
        context = job.judge_context(f"{name} {label}")
        subject = Subject(label, answered.path, base.path if base else None, examples, decoding, context)
        inputs = {"answers": answered, **({"baseline": base} if task.relative and base else {})}
        key, model = f"evaluation.benchmarks.{name}", trained[label].path / "model"
        compute = partial(_run_benchmark, task, key, settings_of(task), subject, model)
        stage = Stage("benchmark", benchmark.VERSION, settings, inputs, compute, benchmark.__name__)
        results[label] = job.get(stage, f"{name} {label}")
        if results[label].cached:
            job.budget.count(results[label].key, results[label].summary.get("cost") or 0.0)
    return results


def _run_benchmark(
    task: Benchmark, name: str, before: Mapping[str, Any], subject: Subject, model: Path, folder: Path
) -> Mapping[str, Any]:
    """Run a benchmark. Examples' answers are decoded from their tokens, as a policy's answers are."""
    renderer = Renderer(load_tokenizer(model))
    examples = [renderer.as_read(example) for example in subject.examples]
    summary = task.run(folder, subject=replace(subject, examples=examples))
    check_unchanged(name, before, settings_of(task))
    return summary


def benchmark_answers(job: Job, questions: answers.AnswerRequest, name: str, policy: Artifact, label: str) -> Artifact:
    """Sample a policy's answers to a benchmark's own questions. All judges share them."""
    p = job.parts
    settings = {"asked": questions, "backend": p.evaluation.backend}

    def compute(folder: Path) -> Mapping[str, Any]:
        responder = Responder(p.evaluation.backend, p.engine, p.hardware.device)
        return questions.answer(folder, policy.path / "model", responder, f"{name} answers {label}")

    stage = Stage("answers", answers.VERSION, settings, {"policy": policy}, compute, answers.__name__)
    return job.get(stage, f"{name} answers {label}")
