"""Evaluate a model of any origin as a job evaluates its policies, with the same settings, store and judgments."""

import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from selfcontrast.config import Parts
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation import contamination
from selfcontrast.evaluation.compare import compare
from selfcontrast.evaluation.evaluate import LM_EVAL
from selfcontrast.job import Job
from selfcontrast.models.hub import download_model
from selfcontrast.models.loading import Pretrained, load_tokenizer, template_text
from selfcontrast.provenance import provenance
from selfcontrast.report.evaluated import write_evaluated
from selfcontrast.results import (
    MODEL,
    RESULT,
    Evaluated,
    measured_lines,
    samples_of,
    samples_table,
    stage_record,
    track_judgments,
)
from selfcontrast.stages.data import find_contamination, published_data
from selfcontrast.stages.evaluate import benchmark_results, scores_of
from selfcontrast.store import Artifact
from selfcontrast.store.artifact import MANIFEST, key_of, verify_once
from selfcontrast.store.content import Content
from selfcontrast.tracking import Tracker

TEMPLATES = ("chat_template.jinja", "additional_chat_templates")  # chat templates in a model's folder
BOUNDS = ("estimate", "low", "high")  # fields of an interval


def evaluate(parts: Parts, config: Mapping[str, Any]) -> Evaluated:
    """Score the model at `model.path`, run the benchmarks, and write results and a report to the output folder.

    Cached results are reused.

    Raises:
        UserError: for a model that cannot be loaded or has no chat template.
    """
    if getattr(parts.model, "added_tokens", None):
        raise UserError(
            "model.added_tokens: only train.py adds tokens. Remove this setting; a finished model has its tokens."
        )
    folder = model_folder(parts.model)
    template = chat_template_override(parts.model)
    tracking: AbstractContextManager[Tracker] = parts.tracking.run(f"evaluate {folder.name}", config, parts.output)
    with tracking as tracker:
        content = Content.of(folder)
        job = Job(parts, tracker, lambda: content.check("model.path"), test_judges=True)
        published_data(job)
        trained = {MODEL: as_artifact(folder, parts.output, template, content)}
        overlaps = pd.read_parquet(find_contamination(job).path / contamination.FILE)
        systems = {MODEL: scores_of(job, trained[MODEL], MODEL)}
        comparison = compare({MODEL: systems[MODEL].path}, parts.evaluation, overlaps, baseline=MODEL)
        measured = {name: benchmark_results(job, name, trained, systems) for name in parts.evaluation.benchmarks}
        result = Evaluated(
            model=str(folder),
            comparison=comparison,
            lm_eval=json.loads((systems[MODEL].path / LM_EVAL).read_text()),
            benchmarks={
                name: measured_lines(parts.evaluation, name, artifacts, job.artifacts["contamination"])
                for name, artifacts in measured.items()
                if artifacts
            },
            samples=samples_of(parts.evaluation.choose(parts.splits), systems, parts.evaluation.headline_decoding),
            stages=[stage_record(name, artifact) for name, artifact in job.artifacts.items()],
            config=dict(config),
            provenance=provenance(),
        )
        (parts.output / RESULT).write_text(json.dumps(asdict(result)))
        write_evaluated(result, parts.output)
        tracker.summary(_summary_numbers(result))
        tracker.table("samples", samples_table(result.samples))
        track_judgments(tracker, parts.evaluation, measured)
        tracker.files(parts.output / RESULT, parts.output / "report.html")
    job.decisions.finish()
    return result


def model_folder(model: Any) -> Path:
    """Return the model's folder, downloaded if needed. Raise `UserError` if the model is untrained."""
    if not isinstance(model, Pretrained):
        raise UserError("model: an untrained model cannot be evaluated. Set model to a folder or a name on the hub.")
    folder = download_model(model.path, model.commit, "model.path", model.local_files_only)
    if not model.chat_template:  # `configure` has checked a given template
        Renderer(load_tokenizer(folder))
    return folder.resolve()


def chat_template_override(model: Any) -> str | None:
    """Return the chat template that replaces the model's own; None without `model.chat_template`."""
    return template_text(model.chat_template) if model.chat_template else None


def as_artifact(folder: Path, output: Path, template: str | None, content: Content) -> Artifact:
    """Return the model as an input artifact of stages.

    A policy of the store is its own artifact, so its cached scores are reused. The key of any other model is
    a hash of its content, including a chat template that replaces its own. Stages find its files by links in `output`.
    """
    artifact = folder.parent
    if template is None and folder.name == "model" and (artifact / MANIFEST).is_file() and not verify_once(artifact):
        return Artifact.read(artifact, cached=True)
    identity = {"model": content.hash, **({} if template is None else {"chat_template": template})}
    links = output / "evaluated" / "model"
    if links.parent.exists():  # an earlier run in this folder left it
        shutil.rmtree(links.parent)
    links.mkdir(parents=True)
    for file in folder.iterdir():
        if template is None or file.name not in TEMPLATES:
            (links / file.name).symlink_to(file, target_is_directory=file.is_dir())
    if template is not None:
        (links / TEMPLATES[0]).write_text(template, encoding="utf-8")
    manifest = {"seconds": 0.0, "summary": {}, "resumed": False}
    return Artifact("model", key_of(identity), links.parent, manifest, cached=True)


def _summary_numbers(result: Evaluated) -> dict[str, Any]:
    means = {row["decoding"]: dict(row["mean"]) for row in result.comparison["rows"]}
    rows = {f"evaluate/{decoding}/{bound}": mean[bound] for decoding, mean in means.items() for bound in BOUNDS}
    tasks = {
        f"lm_eval/{task}/{name}": value for task, metrics in result.lm_eval.items() for name, value in metrics.items()
    }
    lines = {
        f"{name}/{line['what']}/{bound}": line["value"][bound]
        for name, benchmark in result.benchmarks.items()
        for line in benchmark["lines"]
        for bound in BOUNDS
    }
    return {**rows, **tasks, **lines}
