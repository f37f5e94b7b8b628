"""Track a job in plain files: one CSV file per stage and per table."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from selfcontrast.tracking.tracker import NullTracker, Tracker


@dataclass(frozen=True)
class CsvTracking:
    """Files in the run's folder: `metrics/STAGE.csv`, `tables/NAME.csv` and `summary.json`."""

    def check(self) -> None: ...

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
        yield _CsvFiles(folder)


class _CsvFiles(NullTracker):
    """A tracker that overwrites files of earlier runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, list[Mapping[str, float]]] = {}

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        """Append a line. A new metric adds a column and rewrites the file."""
        records = self.records.setdefault(stage, [])
        columns = list(dict.fromkeys(name for known in records for name in known))
        records.append(record)
        file = self._file("metrics", stage)
        if records[1:] and record.keys() <= set(columns):
            pd.DataFrame([record], columns=columns).to_csv(file, mode="a", header=False, index=False)
        else:
            pd.DataFrame(records).to_csv(file, index=False)

    def table(self, name: str, frame: pd.DataFrame) -> None:
        frame.to_csv(self._file("tables", name), index=False)

    def summary(self, values: Mapping[str, Any]) -> None:
        (self.folder / "summary.json").write_text(json.dumps(dict(values), indent=1))

    def _file(self, kind: str, name: str) -> Path:
        file = self.folder / kind / f"{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file
