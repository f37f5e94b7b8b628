"""Track a job in plain files: one CSV file per stage and table."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from selfcontrast.tracking.tracker import Tracker, Untracked


@dataclass(frozen=True)
class CsvTracking:
    """Files in the run's folder: `metrics/STAGE.csv`, `tables/NAME.csv` and `summary.json`."""

    def check(self) -> None: ...

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
        yield _CsvFiles(folder)


class _CsvFiles(Untracked):
    """Starts afresh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, list[Mapping[str, float]]] = {}

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        """Appends a line; a metric that is new makes a column and the file anew."""
        before = self.records.setdefault(stage, [])
        columns = list(dict.fromkeys(name for known in before for name in known))
        before.append(record)
        file = self._file("metrics", stage)
        if before[1:] and record.keys() <= set(columns):
            pd.DataFrame([record], columns=columns).to_csv(file, mode="a", header=False, index=False)
        else:
            pd.DataFrame(before).to_csv(file, index=False)

    def table(self, name: str, frame: pd.DataFrame) -> None:
        frame.to_csv(self._file("tables", name), index=False)

    def summary(self, values: Mapping[str, Any]) -> None:
        (self.folder / "summary.json").write_text(json.dumps(dict(values), indent=1))

    def _file(self, kind: str, name: str) -> Path:
        file = self.folder / kind / f"{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file
