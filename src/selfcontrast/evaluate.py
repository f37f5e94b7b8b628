"""One model, whoever trained it, measured as a job measures its policies: the same settings, store and judgments."""

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
from selfcontrast.models.hub import downloaded
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
from selfcontrast.stages.data import contaminated, published_data
from selfcontrast.stages.evaluate import measured_by, scores_of
from selfcontrast.store import Artifact
from selfcontrast.store.artifact import MANIFEST, key_of, verify_once
from selfcontrast.store.content import Content
from selfcontrast.tracking import Tracker

TEMPLATES = ("chat_template.jinja", "additional_chat_templates")  # what holds them in a model's folder
BOUNDS = ("estimate", "low", "high")  # of an interval


def evaluate(parts: Parts, config: Mapping[str, Any]) -> Evaluated:
    """Scores and benchmarks of `model.path`, computed or recalled; written to the output folder, with a report.

    Raises:
        UserError: for a model that cannot be had or has no chat template.
    """
    if getattr(parts.model, "added_tokens", None):
        raise UserError("model.added_tokens: a finished model has its tokens; only train.py adds any")
    folder = model_folder(parts.model)
    template = given_template(parts.model)
    tracked: AbstractContextManager[Tracker] = parts.tracking.run(f"evaluate {folder.name}", config, parts.output)
    with tracked as tracker:
        content = Content.of(folder)
        job = Job(parts, tracker, lambda: content.check("model.path"), judged=True)
        published_data(job)
        trained = {MODEL: as_artifact(folder, parts.output, template, content)}
        seen = pd.read_parquet(contaminated(job).path / contamination.FILE)
        systems = {MODEL: scores_of(job, trained[MODEL], MODEL)}
        comparison = compare({MODEL: systems[MODEL].path}, parts.evaluation, seen, baseline=MODEL)
        measured = {name: measured_by(job, name, trained, systems) for name in parts.evaluation.benchmarks}
        result = Evaluated(
            model=str(folder),
            comparison=comparison,
            lm_eval=json.loads((systems[MODEL].path / LM_EVAL).read_text()),
            benchmarks={
                name: measured_lines(parts.evaluation, name, found, job.artifacts["contamination"])
                for name, found in measured.items()
                if found
            },
            samples=samples_of(parts.evaluation.choose(parts.splits), systems, parts.evaluation.ways[0].name),
            stages=[stage_record(name, artifact) for name, artifact in job.artifacts.items()],
            config=dict(config),
            provenance=provenance(),
        )
        (parts.output / RESULT).write_text(json.dumps(asdict(result)))
        write_evaluated(result, parts.output)
        tracker.summary(_numbers(result))
        tracker.table("samples", samples_table(result.samples))
        track_judgments(tracker, parts.evaluation, measured)
        tracker.files(parts.output / RESULT, parts.output / "report.html")
    job.decisions.finish()
    return result


def model_folder(model: Any) -> Path:
    """Where its files are: downloaded, where `model.path` is a name on the hub. Raises `UserError`."""
    if not isinstance(model, Pretrained):
        raise UserError("model: there is nothing to evaluate before training; give model=FOLDER or a name on the hub")
    folder = downloaded(model.path, model.commit, "model.path", model.local_files_only)
    if not model.chat_template:  # which `configure` has tried
        Renderer(load_tokenizer(folder))
    return folder.resolve()


def given_template(model: Any) -> str | None:
    """The chat template that `model.chat_template` puts in place of the model's own."""
    return template_text(model.chat_template) if model.chat_template else None


def as_artifact(folder: Path, output: Path, template: str | None, content: Content) -> Artifact:
    """The model as what stages are made from. A policy of the store is itself, so its scores are recalled.

    Of any other the content is the key; links in `output` give it the place where stages look. A chat template in
    place of its own is part of the content.
    """
    above = folder.parent
    if template is None and folder.name == "model" and (above / MANIFEST).is_file() and not verify_once(above):
        return Artifact.read(above, cached=True)
    identity = {"model": content.hash, **({} if template is None else {"chat_template": template})}
    linked = output / "evaluated" / "model"
    if linked.parent.exists():  # of an earlier run in this folder
        shutil.rmtree(linked.parent)
    linked.mkdir(parents=True)
    for file in folder.iterdir():
        if template is None or file.name not in TEMPLATES:
            (linked / file.name).symlink_to(file, target_is_directory=file.is_dir())
    if template is not None:
        (linked / TEMPLATES[0]).write_text(template, encoding="utf-8")
    manifest = {"seconds": 0.0, "summary": {}, "resumed": False}
    return Artifact("model", key_of(identity), linked.parent, manifest, cached=True)


def _numbers(result: Evaluated) -> dict[str, Any]:
    means = {row["decoding"]: dict(row["mean"]) for row in result.comparison["rows"]}
    rows = {f"evaluate/{decoding}/{bound}": mean[bound] for decoding, mean in means.items() for bound in BOUNDS}
    tasks = {f"lm_eval/{task}/{name}": value for task, found in result.lm_eval.items() for name, value in found.items()}
    lines = {
        f"{name}/{line['what']}/{bound}": line["value"][bound]
        for name, found in result.benchmarks.items()
        for line in found["lines"]
        for bound in BOUNDS
    }
    return {**rows, **tasks, **lines}
