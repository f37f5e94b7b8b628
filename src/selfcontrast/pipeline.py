"""The whole method on one page: sft → generate → filter → align → evaluate → report.

Each stage is a function from its settings and input artifacts to one artifact, which the store computes once. Only this
module knows the order of the stages. `stages/` defines each stage's inputs.
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
from selfcontrast.stages.data import find_contamination, published_data
from selfcontrast.stages.evaluate import SystemScores, benchmark_results
from selfcontrast.stages.iteration import Iteration
from selfcontrast.stages.sft import sft
from selfcontrast.store import Artifact
from selfcontrast.tracking import NullTracker, Tracker
from selfcontrast.training.nodes import this_node

SHOWN_PROMPTS = 8  # number of prompts whose candidates are all logged to the tracker


def run(parts: Parts, config: Mapping[str, Any]) -> Result | None:
    """Run all stages that are not cached and write the report. Return the result, on the job's first node only."""
    if this_node(parts.hardware.num_nodes).rank > 0:
        _ = list(policies(Job(parts, NullTracker())))
        return None
    parts.output.mkdir(parents=True, exist_ok=True)  # Hydra creates only its own folder
    tracking: AbstractContextManager[Tracker] = parts.tracking.run(parts.name, config, parts.output)
    with tracking as tracker:
        job = Job(parts, tracker, test_judges=True)
        systems, benchmarks, scored = run_stages(job)
        contamination_table = pd.read_parquet(job.artifacts["contamination"].path / contamination.FILE)
        comparison = compare({name: a.path for name, a in systems.items()}, parts.evaluation, contamination_table)
        against_kl = curve([scores.measured() for scores in scored], parts.evaluation)
        result = Result.collect(parts, config, job.artifacts, systems, comparison, benchmarks, against_kl)
        (parts.output / RESULT).write_text(json.dumps(asdict(result)))
        write_report(result, parts.output)
        result.track(tracker, parts.output)
        track_judgments(tracker, parts.evaluation, benchmarks)
        if parts.iterations:
            tracker.table("candidates", last_candidates(job))
    job.decisions.finish()
    return result


Measurements = tuple[dict[str, Artifact], dict[str, dict[str, Artifact]], list[SystemScores]]


def run_stages(job: Job) -> Measurements:
    """Run all stages in order. Return scores by system, results by benchmark and system, and all scored checkpoints."""
    _ = published_data(job), find_contamination(job)
    trained: dict[str, Artifact] = {}
    systems: dict[str, Artifact] = {}
    scored: list[SystemScores] = []
    for name, policy in policies(job):
        sft = trained.get(BASELINE, policy)
        earlier = [*trained.values()]
        scored += [SystemScores.of(job, policy, sft, name, earlier, number) for number in checkpoints(job, policy, sft)]
        # Score a policy before anything is sampled from it, so that a poor fine-tuned model shows early.
        scored.append(scores := SystemScores.of(job, policy, sft, name, earlier))
        trained[name], systems[name] = policy, scores.scores
    benchmarks = {name: benchmark_results(job, name, trained, systems) for name in job.parts.evaluation.benchmarks}
    return systems, benchmarks, scored


def checkpoints(job: Job, policy: Artifact, sft: Artifact) -> range:
    """Return the numbers of preference training's checkpoints before its last step."""
    return range(1, 1 if policy is sft else job.parts.evaluation.checkpoints)


def policies(job: Job) -> Iterator[tuple[str, Artifact]]:
    """Yield name and artifact of the fine-tuned model, then of each iteration's policy.

    Each iteration starts from the model that was yielded before.
    """
    start, iterations, method = sft(job), job.parts.iterations, job.parts.label
    yield BASELINE, start
    previous = None
    for number in range(1, iterations + 1):
        previous = Iteration(job, start, "" if number == iterations else f"iteration-{number}/", previous)
        start = previous.policy
        yield method if number == iterations else f"{method} iteration {number}", start


def last_candidates(job: Job) -> pd.DataFrame:
    """Return the candidates of the last iteration for the tracker's table."""
    candidates = job.artifacts.get("gather", job.artifacts["generate"])
    embedded, filtered = (job.artifacts[name].path for name in ("embed", "filter"))
    return candidate_table(candidates.path / generate.FILE, embedded, filtered, job.train, SHOWN_PROMPTS)
