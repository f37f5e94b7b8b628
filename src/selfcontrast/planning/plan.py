"""List the stages of a job, and whether they are cached, without computing anything.

The real pipeline runs with a job whose stages only compute their keys. A key depends only on settings and the keys of
inputs, so the plan has the same stages and keys as a run.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from selfcontrast.config import Parts, assemble, build, build_groups, configure
from selfcontrast.data.example import Example, Split
from selfcontrast.errors import UserError
from selfcontrast.job import Job
from selfcontrast.pipeline import run_stages
from selfcontrast.store import Artifact, Stage
from selfcontrast.tracking import NullTracker

NO_FACTS: dict[str, Any] = {"seconds": 0.0, "summary": {}, "resumed": False}


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a job and its label. `artifact.cached` is True if the store has the artifact."""

    label: str
    artifact: Artifact

    @property
    def stage(self) -> str:
        return self.artifact.stage


@dataclass(frozen=True)
class Planned:
    """A job's plan.

    Attributes:
        parts: the job's parts; without examples if the data cannot be read on this machine.
        steps: the job's stages, in order.
        obstacle: why the job would not start on this machine; "" if it would start.
    """

    parts: Parts
    steps: list[PlannedStage]
    obstacle: str


class Rehearsal(Job):
    """A job that looks its stages up in the store and runs none of them."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts, NullTracker())
        self.steps: list[PlannedStage] = []
        self._recomputed: set[str] = set()  # keys of stages to recompute, and of their dependents

    def get(self, stage: Stage, label: str | None = None, trained: bool = False) -> Artifact:
        folder = self.parts.store.root / stage.name / stage.key
        missing = Artifact(stage.name, stage.key, folder, {"stage": stage.name, **NO_FACTS}, cached=False)
        try:
            artifact = Artifact.read(folder, cached=True)
        except (OSError, ValueError, KeyError):
            artifact = missing
        inputs_recomputed = any(artifact.key in self._recomputed for artifact in stage.inputs.values())
        inputs_exist = all(artifact.content for artifact in stage.inputs.values())
        if stage.name in self.parts.recompute or inputs_recomputed or (inputs_exist and stage.stale(artifact.manifest)):
            self._recomputed.add(stage.key)
            artifact = missing
        self.steps.append(PlannedStage(label or stage.name, artifact))
        return artifact


class DataReader:
    """Read each data set once, even if several jobs use it."""

    def __init__(self) -> None:
        self.cache: dict[str, tuple[dict[Split, list[Example]], str]] = {}

    def __call__(self, data: DictConfig) -> tuple[dict[Split, list[Example]], str]:
        """Return the examples and "", or no examples and the reason why they cannot be read."""
        text = OmegaConf.to_yaml(data, resolve=True)
        if text not in self.cache:
            try:
                self.cache[text] = build(data, "data").load(), ""
            except UserError as error:
                self.cache[text] = {"train": [], "validation": [], "test": []}, str(error)
        return self.cache[text]


def plan(cfg: DictConfig, read: DataReader) -> Planned:
    """Plan the job that a config describes. Raises `UserError` if no job can be built from it."""
    splits, obstacle = read(cfg.data)
    if not obstacle:
        try:
            parts = configure(cfg, splits)
        except UserError as error:
            obstacle = str(error)
    if obstacle:
        parts = assemble(cfg, build_groups(cfg), splits)
    rehearsal = Rehearsal(parts)
    run_stages(rehearsal)
    return Planned(parts, rehearsal.steps, obstacle)
