"""The interface of a tracker, and the tracker that stores nothing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from selfcontrast.store import Artifact


class Tracker(Protocol):
    """A receiver of a job's metrics while the job runs."""

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        """Log the metrics of a stage. The metric `step` is the stage's own axis."""

    def table(self, name: str, frame: pd.DataFrame) -> None: ...

    def figure(self, name: str, file: Path) -> None: ...

    def artifact(self, artifact: Artifact, used: Sequence[Artifact]) -> None:
        """Log an artifact of the store, and the artifacts that it was computed from."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Log the main numbers."""

    def files(self, *paths: Path) -> None:
        """Log files of the run itself, such as the report."""


class Tracking(Protocol):
    """The config of tracking."""

    def check(self) -> None: ...

    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Any:
        """Return a context manager that yields a `Tracker`."""


class NullTracker:
    """A tracker that stores nothing."""

    def log(self, stage: str, record: Mapping[str, float]) -> None: ...

    def table(self, name: str, frame: pd.DataFrame) -> None: ...

    def figure(self, name: str, file: Path) -> None: ...

    def artifact(self, artifact: Artifact, used: Sequence[Artifact]) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def files(self, *paths: Path) -> None: ...


@dataclass(frozen=True)
class NoTracking:
    """No tracking. The report and the store still have all results."""

    def check(self) -> None: ...

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
        yield NullTracker()
