"""A tracker that logs a job to one run of Weights & Biases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from selfcontrast.preemption import ENDED, EarlyStop
from selfcontrast.store import Artifact


class WandbRun:
    """Send metrics, tables, figures and artifacts to a started run."""

    def __init__(self, run: Any, upload: bool) -> None:
        self.run = run
        self.upload = upload
        self.logged: dict[str, float] = {}  # each stage's last step in the resumed run; -1 in a new run

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        if stage not in self.logged:
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self.logged[stage] = self.run.summary.get(f"{stage}/step", -1) if self.run.resumed else -1
        if "step" in record and record["step"] <= self.logged[stage]:
            return
        self.run.log({f"{stage}/{name}": value for name, value in record.items()})

    def table(self, name: str, frame: pd.DataFrame) -> None:
        import wandb

        plain = frame.astype(object).where(frame.notna(), None)  # W&B supports neither NaN among strings nor pandas' NA
        self.run.log({f"tables/{name}": wandb.Table(dataframe=plain, allow_mixed_types=True)})

    def figure(self, name: str, file: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(file))})

    def artifact(self, artifact: Artifact, used: Sequence[Artifact]) -> None:
        """Log a computed artifact as an output of the run, and a cached one as an input.

        Data are always an input, because lineage begins there. Offline runs have no inputs: all artifacts are outputs.
        """
        import wandb

        mirrored = wandb.Artifact(
            name=f"{artifact.stage}-{artifact.key}",
            type=artifact.stage,
            metadata={
                "key": artifact.key,
                "summary": artifact.summary,
                "settings": artifact.manifest["settings"],
                "inputs": artifact.manifest["inputs"],
                "made_from": [f"{a.stage}-{a.key}" for a in used],
            },
        )
        if self.upload:
            mirrored.add_dir(str(artifact.path))
        else:
            mirrored.add_reference(artifact.path.resolve().as_uri(), checksum=False)
        if (artifact.cached or artifact.stage == "data") and not self.run.offline:
            self.run.use_artifact(
                mirrored, aliases=[artifact.key]
            )  # W&B finds the artifact by its content, or creates it
        else:
            self.run.log_artifact(mirrored, aliases=[artifact.key])

    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def files(self, *paths: Path) -> None:
        import wandb

        report = wandb.Artifact(name=f"report-{self.run.id}", type="report")
        for path in paths:
            report.add_file(str(path))
        self.run.log_artifact(report)


def record_error(run: Any, error: BaseException) -> int:
    """Record in the run why its job ends early. Return the exit code."""
    if isinstance(error, EarlyStop):
        run.summary["stopped"] = "early"
        run.tags = (*(run.tags or ()), "stopped early")
        return int(error.code or 0)
    if isinstance(error, SystemExit) and error.code == ENDED:
        run.mark_preempting()  # a sweep assigns the run again
        run.summary["error"] = "terminated; the same command resumes it"
        return ENDED
    run.summary["error"] = f"{type(error).__name__}: {error}"
    return 1
