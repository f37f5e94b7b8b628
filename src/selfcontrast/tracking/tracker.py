"""The interface of a tracker, and the tracker that keeps nothing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from selfcontrast.store import Artifact


class Tracker(Protocol):
    """Where a job's metrics go while it runs."""

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        """Metrics of a stage; `step` among them is the stage's own axis."""

    def table(self, name: str, frame: pd.DataFrame) -> None: ...

    def figure(self, name: str, file: Path) -> None: ...

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

    def figure(self, name: str, file: Path) -> None: ...

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
