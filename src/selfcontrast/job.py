"""What all stages of a job share: the store, the tracker, the seed, and the list of artifacts so far."""

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
from selfcontrast.progress import current, signs_of_life
from selfcontrast.results import replay, stage_facts
from selfcontrast.store import Artifact, Compute, Stage
from selfcontrast.store.code import changed, remember
from selfcontrast.store.settings import PACKAGE
from selfcontrast.tracking import Tracker
from selfcontrast.training.nodes import Decisions, this_node

log = logging.getLogger(__name__)

DATA = "data"
SHOWN_FILES = 4  # of those whose code has changed
COSTLY = ("generate", "evaluate")  # stages that may take hours, beside those that train


class Job:
    """A job at work.

    Attributes:
        artifacts: what its stages gave so far, by label.
        budget: of all its judgments.
        train: the training examples by id.

    Args:
        check_inputs: raises `UserError` if what stages read beside artifacts is another by now; asked after each of
            them, before it is published.
        judged: the benchmarks' judges will be needed, and are asked once before anything costly is computed.
    """

    def __init__(
        self, parts: Parts, tracker: Tracker, check_inputs: Callable[[], None] = lambda: None, judged: bool = False
    ) -> None:
        remember(PACKAGE)
        self.parts = parts
        self.check_inputs = check_inputs
        self._asks = judged
        self.tracker = tracker
        self.decisions = Decisions(this_node(parts.hardware.num_nodes))
        self.artifacts: dict[str, Artifact] = {}
        self.budget = Budget(parts.evaluation.max_cost)
        self.train = {example.id: example for example in parts.splits["train"]}

    def get(self, stage: Stage, label: str | None = None, trained: bool = False) -> Artifact:
        """The stage's artifact, computed if it is not there; `label` is what this job calls it, if not by its name.

        Args:
            trained: all nodes of the job compute it together.
        """
        name = label or stage.name

        def seeded(folder: Path) -> Mapping[str, Any] | None:
            if trained or stage.name in COSTLY:
                self._ask_judges()
            log.info("%-24s running", name)
            lightning.seed_everything(self.parts.seed, verbose=False)
            with signs_of_life(name):
                summary = stage.compute(folder)
            self.check_inputs()
            return summary

        def get(computed: Compute) -> Artifact:
            again_before = self.parts.begun if stage.name in self.parts.recompute else 0.0
            return self.parts.store.get(replace(stage, compute=computed), again_before)

        artifact = self.decisions.together(name, seeded, get) if trained else get(seeded)
        log.info("%-24s %s", name, stage_facts(artifact))
        if artifact.cached:
            self._say_other_code(name, stage, artifact)
            replay(artifact, self.tracker, name)
        self.tracker.artifact(artifact, [*self._data(stage.settings), *stage.inputs.values()])
        self.artifacts[name] = artifact
        return artifact

    def _say_other_code(self, name: str, stage: Stage, artifact: Artifact) -> None:
        before = artifact.manifest.get("code")  # none in those of earlier releases
        if before and (files := changed(before, stage.code)):
            more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
            log.warning(
                "%-24s was made by other code (%s%s); recompute=[%s] computes it again",
                name, ", ".join(files[:SHOWN_FILES]), more, stage.name,
            )  # fmt: skip

    def judge_context(self, who: str) -> JudgeContext:
        """What judges may need; `who` is the benchmark and the system that they are asked for."""
        p = self.parts
        return JudgeContext(p.hardware.device, p.grader, p.store.root / "judgments", self.budget, who)

    def _ask_judges(self) -> None:
        """Ask each judge that somebody else runs, once: one that is dead is not found after hours of training."""
        if not self._asks:
            return
        self._asks = False
        p = self.parts
        examples, asked = p.evaluation.choose(p.splits), list[RemoteJudge]()
        for name, benchmark in p.evaluation.benchmarks.items():
            judge = getattr(benchmark, "judge", None)
            if isinstance(judge, RemoteJudge) and judge not in asked and not benchmark.skip_reason(examples, p.grader):
                asked.append(judge)
                try:
                    judge.ready(self.judge_context(name))
                except UserError as error:
                    raise UserError(f"evaluation.benchmarks.{name}: {error}") from error

    def _data(self, settings: Mapping[str, Any]) -> list[Artifact]:
        """The data, of a stage that is made from it: its fingerprint is among the settings."""
        own = self.artifacts.get(DATA)
        return [own] if own and DATA in settings else []

    def report(self, name: str) -> Callable[[Mapping[str, float]], None]:
        """Where a stage of this label sends its metrics while it runs."""

        def tell(record: Mapping[str, float]) -> None:
            self.tracker.log(name, record)
            if (counted := current()) and "loss" in record:
                counted.reach(int(record["step"]), record["loss"])

        return tell
