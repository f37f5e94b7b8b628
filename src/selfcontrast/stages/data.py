"""The stages over the data alone: the published examples, and the check for contamination."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcontrast.data import dataset
from selfcontrast.evaluation import contamination
from selfcontrast.job import DATA, Job
from selfcontrast.store import Artifact, Stage
from selfcontrast.store.artifact import key_of


def published_data(job: Job) -> Artifact:
    """All examples: the lineage of whatever is made from them begins here."""
    p = job.parts
    stage = Stage(DATA, dataset.VERSION, p.rows, {}, lambda folder: dataset.publish(folder, p.splits), dataset.__name__)
    return job.get(stage)


def contaminated(job: Job) -> Artifact:
    """Which evaluated prompts, benchmarks' own among them, resemble a training prompt: the same for every policy."""
    p = job.parts
    rule = p.evaluation.contamination
    asked = {name: own for name, each in p.evaluation.benchmarks.items() if (own := each.own_prompts())}
    settings = {
        "rule": rule,
        **({"benchmarks": key_of(asked)} if asked else {}),
        "split": p.evaluation.split,
        "prompts": p.evaluation.prompts,
        **p.rows,
    }

    def compute(folder: Path) -> Mapping[str, Any]:
        prompts = {e.id: contamination.user_text(e) for e in p.evaluation.choose(p.splits)}
        training = [contamination.user_text(e) for e in p.splits["train"]]
        benchmarks = {p.evaluation.split: prompts, **asked}
        return contamination.check_benchmarks(folder, rule, benchmarks, training, p.hardware.device)

    return job.get(Stage("contamination", contamination.VERSION, settings, {}, compute, contamination.__name__))
