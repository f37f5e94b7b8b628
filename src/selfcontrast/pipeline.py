"""The whole method on one page: sft → generate → filter → align → evaluate → report.

Each stage is a function from its settings and the artifacts before it to one artifact, which the store computes once.
Only this module knows their order; what each is made from is in `stages/`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import pandas as pd

from selfcontrast.config import Parts
from selfcontrast.evaluation import contamination
from selfcontrast.evaluation.compare import BASELINE, compare
from selfcontrast.evaluation.curve import curve
from selfcontrast.filters.candidate_table import candidate_table
from selfcontrast.generators import generate
from selfcontrast.job import Job
from selfcontrast.report.page import write_report
from selfcontrast.results import RESULT, Result, track_judgments
from selfcontrast.stages.data import contaminated, published_data
from selfcontrast.stages.evaluate import Scored, measured_by
from selfcontrast.stages.round import Round
from selfcontrast.stages.sft import sft
from selfcontrast.store import Artifact
from selfcontrast.tracking import NullTracker, Tracker
from selfcontrast.training.nodes import this_node

SHOWN_PROMPTS = 8  # whose candidates are tracked, all of them


def run(parts: Parts, config: Mapping[str, Any]) -> Result | None:
    """Runs or recalls all stages and writes the report; returns what it says, on the first node of the job."""
    if this_node(parts.hardware.num_nodes).rank > 0:
        _ = list(policies(Job(parts, NullTracker())))
        return None
    parts.output.mkdir(parents=True, exist_ok=True)  # which Hydra makes, unless `output` alone was given
    tracked: AbstractContextManager[Tracker] = parts.tracking.run(parts.name, config, parts.output)
    with tracked as tracker:
        job = Job(parts, tracker, judged=True)
        systems, measured, scored = everything(job)
        seen = pd.read_parquet(job.artifacts["contamination"].path / contamination.FILE)
        comparison = compare({name: a.path for name, a in systems.items()}, parts.evaluation, seen)
        against_kl = curve([each.measured() for each in scored], parts.evaluation)
        result = Result.collect(parts, config, job.artifacts, systems, comparison, measured, against_kl)
        (parts.output / RESULT).write_text(json.dumps(asdict(result)))
        write_report(result, parts.output)
        result.track(tracker, parts.output)
        track_judgments(tracker, parts.evaluation, measured)
        if parts.iterations:
            tracker.table("candidates", some_candidates(job))
    job.decisions.finish()
    return result


Measurements = tuple[dict[str, Artifact], dict[str, dict[str, Artifact]], list[Scored]]


def everything(job: Job) -> Measurements:
    """All stages in their order: by system its scores, by benchmark each system's results, and what KL is shown of."""
    _ = published_data(job), contaminated(job)
    trained: dict[str, Artifact] = {}
    systems: dict[str, Artifact] = {}
    scored: list[Scored] = []
    for name, policy in policies(job):
        sft = trained.get(BASELINE, policy)
        earlier = [*trained.values()]
        scored += [Scored.of(job, policy, sft, name, earlier, number) for number in checkpoints(job, policy, sft)]
        # Before anything is sampled from it: a poor fine-tuned model is seen early.
        scored.append(own := Scored.of(job, policy, sft, name, earlier))
        trained[name], systems[name] = policy, own.scores
    benchmarks = {name: measured_by(job, name, trained, systems) for name in job.parts.evaluation.benchmarks}
    return systems, benchmarks, scored


def checkpoints(job: Job, policy: Artifact, sft: Artifact) -> range:
    """The numbers of a training's checkpoints that are scored before its last step."""
    return range(1, 1 if policy is sft else job.parts.evaluation.checkpoints)


def policies(job: Job) -> Iterator[tuple[str, Artifact]]:
    """With its name the fine-tuned model, then the policy of every round, each of which starts from the one before."""
    start, last, method = sft(job), job.parts.iterations, job.parts.label
    yield BASELINE, start
    before = None
    for number in range(1, last + 1):
        before = Round(job, start, "" if number == last else f"round-{number}/", before)
        start = before.policy
        yield method if number == last else f"{method} round {number}", start


def some_candidates(job: Job) -> pd.DataFrame:
    """Of the last round."""
    candidates = job.artifacts.get("gather", job.artifacts["generate"])
    found = {name: job.artifacts[name].path for name in ("embed", "filter")}
    return candidate_table(candidates.path / generate.FILE, found["embed"], found["filter"], job.train, SHOWN_PROMPTS)
