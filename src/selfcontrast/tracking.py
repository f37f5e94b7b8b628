"""One W&B run per job: config, every metric of every stage on its own axis, tables, artifacts with their lineage.

Online under a sweep agent or where a key is configured, else offline with one line that says how to sync;
`WANDB_MODE` wins. The stage store is the truth, and W&B mirrors it: an artifact's version is the store's key.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from selfcontrast.errors import UserError
from selfcontrast.store import Artifact

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")


class Tracker(Protocol):
    """Where a job's metrics go while it runs."""

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        """Metrics of a stage; `step` among them is the stage's own axis."""

    def table(self, name: str, frame: pd.DataFrame) -> None: ...

    def artifact(self, artifact: Artifact, used: Sequence[Artifact]) -> None:
        """An artifact of the store, and those it was made from."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """The headline numbers."""

    def files(self, *paths: Path) -> None:
        """Files that belong to the run itself, such as the report."""


class Tracking(Protocol):
    """How a job is tracked, from its config."""

    def check(self) -> None: ...

    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Any:
        """A context manager that gives a `Tracker`."""


class Untracked:
    """Keeps nothing."""

    def log(self, stage: str, record: Mapping[str, float]) -> None: ...

    def table(self, name: str, frame: pd.DataFrame) -> None: ...

    def artifact(self, artifact: Artifact, used: Sequence[Artifact]) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def files(self, *paths: Path) -> None: ...


@dataclass(frozen=True)
class NoTracking:
    """For trying things: the report and the store keep all there is."""

    def check(self) -> None: ...

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
        yield Untracked()


@dataclass(frozen=True)
class WandbTracking:
    """Weights & Biases.

    Attributes:
        mode: auto, online, offline or disabled; the environment's WANDB_MODE wins.
        upload: whether artifacts' files are uploaded, or referred to by their path and checksum.
    """

    project: str
    entity: str | None
    group: str | None
    tags: list[str] = field()
    mode: str = field()
    upload: bool = field()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"tracking.mode={self.mode}: one of {', '.join(MODES)}")

    def check(self) -> None:
        if self.resolved_mode() not in MODES[1:]:
            raise UserError(f"WANDB_MODE={self.resolved_mode()}: one of {', '.join(MODES[1:])}")
        if self.resolved_mode() == "online" and not _has_key() and "WANDB_SWEEP_ID" not in os.environ:
            raise UserError("W&B's mode online needs a key: set WANDB_API_KEY or run `wandb login`, or use offline")

    def resolved_mode(self) -> str:
        if mode := os.environ.get("WANDB_MODE"):
            return mode
        if self.mode != "auto":
            return self.mode
        return "online" if "WANDB_SWEEP_ID" in os.environ or _has_key() else "offline"

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
        import wandb

        mode = self.resolved_mode()
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            job_type="train",
            tags=self.tags,
            name=name,
            config=dict(config),
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            save_code=False,
            settings=wandb.Settings(silent=True),
        )
        # Finished whatever happens: in a multirun all jobs share this process, and a run that is left open would
        # silently be handed to the next job. (W&B's own context manager prints a traceback besides.)
        try:
            yield _WandbRun(run, self.upload)
        except BaseException as error:
            run.summary["error"] = f"{type(error).__name__}: {error}"
            run.finish(exit_code=1)
            raise
        offline = Path(run.dir).parent
        run.finish()
        if mode == "offline":
            log.info("W&B      offline; to upload this run: wandb sync %s", _relative(offline))


class _WandbRun:
    def __init__(self, run: Any, upload: bool) -> None:
        self.run = run
        self.upload = upload
        self.axes: set[str] = set()

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        if stage not in self.axes:
            self.axes.add(stage)
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({f"{stage}/{name}": value for name, value in record.items()})

    def table(self, name: str, frame: pd.DataFrame) -> None:
        import wandb

        self.run.log({f"tables/{name}": wandb.Table(dataframe=frame)})

    def artifact(self, artifact: Artifact, used: Sequence[Artifact]) -> None:
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
                "cached": artifact.cached,
            },
        )
        if self.upload:
            mirrored.add_dir(str(artifact.path))
        else:
            mirrored.add_reference(artifact.path.resolve().as_uri(), checksum=False)
        self.run.log_artifact(mirrored, aliases=[artifact.key])

    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def files(self, *paths: Path) -> None:
        import wandb

        report = wandb.Artifact(name=f"report-{self.run.id}", type="report")
        for path in paths:
            report.add_file(str(path))
        self.run.log_artifact(report)


def _has_key() -> bool:
    """Whether a key is configured for W&B's server; the key itself is not kept."""
    from requests.utils import get_netrc_auth

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY")) or get_netrc_auth(server) is not None


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
