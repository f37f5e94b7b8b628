"""The stages that need only data: the published examples, and the contamination check."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcontrast.data import dataset
from selfcontrast.evaluation import contamination
from selfcontrast.job import DATA, Job
from selfcontrast.store import Artifact, Stage
from selfcontrast.store.artifact import key_of


def published_data(job: Job) -> Artifact:
    """Publish all examples, the start of every artifact's lineage."""
    p = job.parts
    stage = Stage(DATA, dataset.VERSION, p.rows, {}, lambda folder: dataset.publish(folder, p.splits), dataset.__name__)
    return job.get(stage)


def find_contamination(job: Job) -> Artifact:
    """Find evaluated prompts, including benchmarks' own, that resemble training prompts. Policies share the result."""
    p = job.parts
    rule = p.evaluation.contamination
    benchmark_prompts = {
        name: prompts for name, benchmark in p.evaluation.benchmarks.items() if (prompts := benchmark.own_prompts())
    }
    settings = {
        "rule": rule,
        **({"benchmarks": key_of(benchmark_prompts)} if benchmark_prompts else {}),
        "split": p.evaluation.split,
        "prompts": p.evaluation.prompts,
        **p.rows,
    }

    def compute(folder: Path) -> Mapping[str, Any]:
        prompts = {e.id: contamination.user_text(e) for e in p.evaluation.choose(p.splits)}
        training = [contamination.user_text(e) for e in p.splits["train"]]
        benchmarks = {p.evaluation.split: prompts, **benchmark_prompts}
        return contamination.check_benchmarks(folder, rule, benchmarks, training, p.hardware.device)

    return job.get(Stage("contamination", contamination.VERSION, settings, {}, compute, contamination.__name__))
