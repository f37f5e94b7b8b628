"""The sft stage: fine-tune the model that all later stages start from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcontrast.job import Job
from selfcontrast.store import Artifact, Stage
from selfcontrast.training import sft as fine_tune
from selfcontrast.training.training import Training


def sft(job: Job) -> Artifact:
    """Fine-tune the model on the training targets."""
    p = job.parts
    settings: dict[str, Any] = {"data": p.data, "model": p.model}
    if p.sft.epochs:  # at 0 epochs the model is unchanged, so these settings do not matter
        settings |= {"adapter": p.adapter.at("sft"), "optim": p.sft, "hardware": p.hardware, "seed": p.seed}

    def compute(folder: Path) -> Mapping[str, Any]:
        training = Training(p.adapter.at("sft"), p.sft, p.hardware, p.seed, job.report("sft"))
        return fine_tune.fine_tune(folder, p.model, p.splits, training)

    return job.get(Stage("sft", fine_tune.VERSION, settings, {}, compute, fine_tune.__name__), trained=True)
