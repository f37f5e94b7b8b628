"""The stages that measure a policy: evaluate, answers and benchmark."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation import evaluate as scores
from selfcontrast.evaluation.benchmarks import answers as asking
from selfcontrast.evaluation.benchmarks import benchmark
from selfcontrast.evaluation.benchmarks.benchmark import Benchmark, Subject
from selfcontrast.evaluation.compare import BASELINE
from selfcontrast.generators.backend import Responder
from selfcontrast.job import Job
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.stages.unchanged import check_unchanged
from selfcontrast.store import Artifact, Stage, settings_of

log = logging.getLogger(__name__)


def scores_of(job: Job, policy: Artifact, name: str) -> Artifact:
    """Score a policy on the held-out prompts; `name` is what the report calls it."""
    p = job.parts
    verifier = p.data.verifier()
    settings = {
        "evaluation": p.evaluation,
        "precision": p.model.precision,
        "data": p.data,
        "encoder": None if verifier else p.encoder,
    }

    def compute(folder: Path) -> Mapping[str, Any]:
        measured = scores.Policy(name, policy.path / "model", p.model.precision, p.hardware.device)
        responder = Responder(p.evaluation.backend, p.engine, p.hardware.device)
        examples = p.evaluation.choose(p.splits)
        return scores.evaluate(folder, p.evaluation, measured, examples, verifier, p.encoder, responder)

    stage = Stage("evaluate", scores.VERSION, settings, {"policy": policy}, compute, scores.__name__)
    return job.get(stage, f"evaluate {name}")


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
    if reason := measure.left_out(examples, p.data.verifier()):
        log.info("%-24s left out: %s", name, reason)
        return {}
    if measure.relative and (BASELINE not in systems or len(systems) == 1):
        return {}
    settings = {"benchmark": measure, **({} if measure.own_prompts() else {"data": p.data})}
    asked, decoding = measure.asking(examples), p.evaluation.ways[0].name
    if asked:
        systems = {label: answers_to(job, asked, name, trained[label], label) for label in systems}
        decoding = asking.OWN
    found = {}
    for label, answered in systems.items():
        base = None if label == BASELINE else systems.get(BASELINE)
        if measure.relative and base is None:
            continue
        surroundings = job.surroundings(f"{name} {label}")
        subject = Subject(label, answered.path, base.path if base else None, examples, decoding, surroundings)
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


def answers_to(job: Job, asked: asking.Asking, name: str, policy: Artifact, label: str) -> Artifact:
    """A policy's answers to a benchmark's own questions: the same for every judge."""
    p = job.parts
    settings = {"asked": asked, "backend": p.evaluation.backend}

    def compute(folder: Path) -> Mapping[str, Any]:
        responder = Responder(p.evaluation.backend, p.engine, p.hardware.device)
        return asked.answer(folder, policy.path / "model", responder, f"{name} answers {label}")

    stage = Stage("answers", asking.VERSION, settings, {"policy": policy}, compute, asking.__name__)
    return job.get(stage, f"{name} answers {label}")
