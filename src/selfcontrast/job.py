"""Run the stages of one job: seed them, look them up in the store, log and track them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning

from selfcontrast.config import Parts
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges import JudgeContext
from selfcontrast.evaluation.judges.budget import Budget
from selfcontrast.evaluation.judges.judgment import RemoteJudge
from selfcontrast.progress import current, heartbeat
from selfcontrast.results import replay, stage_facts
from selfcontrast.store import Artifact, Compute, Stage
from selfcontrast.store.code import changed, remember
from selfcontrast.store.settings import PACKAGE
from selfcontrast.tracking import Tracker
from selfcontrast.training.nodes import Decisions, this_node

log = logging.getLogger(__name__)

DATA = "data"
SHOWN_FILES = 4  # changed source files named in a warning
COSTLY = ("generate", "evaluate")  # stages that may take hours, besides those that train


class Job:
    """A running job.

    Attributes:
        artifacts: the artifacts of its stages so far, by label.
        budget: the budget that all its judgments share.
        train: the training examples by id.

    Args:
        check_inputs: raises `UserError` if inputs other than artifacts have changed. It is called after each stage,
            before publishing.
        test_judges: True to test the benchmarks' judges once, before the first costly stage.
    """

    def __init__(
        self, parts: Parts, tracker: Tracker, check_inputs: Callable[[], None] = lambda: None, test_judges: bool = False
    ) -> None:
        remember(PACKAGE)
        self.parts = parts
        self.check_inputs = check_inputs
        self._judges_pending = test_judges
        self.tracker = tracker
        self.decisions = Decisions(this_node(parts.hardware.num_nodes))
        self.artifacts: dict[str, Artifact] = {}
        self.budget = Budget(parts.evaluation.max_cost)
        self.train = {example.id: example for example in parts.splits["train"]}

    def get(self, stage: Stage, label: str | None = None, trained: bool = False) -> Artifact:
        """Return the stage's artifact. Compute it if it is missing.

        Args:
            label: this job's name for the stage; None for the stage's own name.
            trained: True if all nodes of the job compute it together.
        """
        name = label or stage.name

        def compute_seeded(folder: Path) -> Mapping[str, Any] | None:
            if trained or stage.name in COSTLY:
                self._check_judges()
            log.info("%-24s running", name)
            lightning.seed_everything(self.parts.seed, verbose=False)
            with heartbeat(name):
                summary = stage.compute(folder)
            self.check_inputs()
            return summary

        def get_artifact(compute: Compute) -> Artifact:
            again_before = self.parts.begun if stage.name in self.parts.recompute else 0.0
            return self.parts.store.get(replace(stage, compute=compute), again_before)

        artifact = (
            self.decisions.compute_together(name, compute_seeded, get_artifact)
            if trained
            else get_artifact(compute_seeded)
        )
        log.info("%-24s %s", name, stage_facts(artifact))
        if artifact.cached:
            self._warn_of_changed_code(name, stage, artifact)
            replay(artifact, self.tracker, name)
        self.tracker.artifact(artifact, [*self._data(stage.settings), *stage.inputs.values()])
        self.artifacts[name] = artifact
        return artifact

    def _warn_of_changed_code(self, name: str, stage: Stage, artifact: Artifact) -> None:
        recorded = artifact.manifest.get("code")  # missing in manifests of earlier releases
        if recorded and (files := changed(recorded, stage.code)):
            more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
            log.warning(
                "%-24s was computed by different code (%s%s). Use recompute=[%s] to recompute it.",
                name, ", ".join(files[:SHOWN_FILES]), more, stage.name,
            )  # fmt: skip

    def judge_context(self, label: str) -> JudgeContext:
        """Return the context of judges; `label` names the benchmark and the system."""
        p = self.parts
        return JudgeContext(p.hardware.device, p.grader, p.store.root / "judgments", self.budget, label)

    def _check_judges(self) -> None:
        """Send one request to each remote judge, so that a dead judge is found before hours of training."""
        if not self._judges_pending:
            return
        self._judges_pending = False
        p = self.parts
        examples, checked = p.evaluation.choose(p.splits), list[RemoteJudge]()
        for name, benchmark in p.evaluation.benchmarks.items():
            judge = getattr(benchmark, "judge", None)
            if not isinstance(judge, RemoteJudge) or judge in checked:
                continue
            if not benchmark.skip_reason(examples, p.grader):
                checked.append(judge)
                try:
                    judge.ready(self.judge_context(name))
                except UserError as error:
                    raise UserError(f"evaluation.benchmarks.{name}: {error}") from error

    def _data(self, settings: Mapping[str, Any]) -> list[Artifact]:
        """Return the data artifact in a list if the settings hold the data's fingerprint; else an empty list."""
        data = self.artifacts.get(DATA)
        return [data] if data and DATA in settings else []

    def report(self, name: str) -> Callable[[Mapping[str, float]], None]:
        """Return the function that receives a running stage's metrics."""

        def send(record: Mapping[str, float]) -> None:
            self.tracker.log(name, record)
            if (progress := current()) and "loss" in record:
                progress.reach(int(record["step"]), record["loss"])

        return send
