"""Read W&B's offline files: LevelDB logs of `Record` messages. The package has no reader class for them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, MAGIC = 32768, 7, b":W&B"


def records(file: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _log(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        yield record


def _log(data: bytes) -> Iterator[bytes]:
    """Parse LevelDB's blocks of 32 KiB; per chunk checksum (4), length (2), type (1: whole, 2: first … 4: last)."""
    assert data.startswith(MAGIC)
    position, whole = HEADER, b""
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        start = position + HEADER
        whole += data[start : start + length]
        position = start + length
        if kind in (1, 4):
            yield whole
            whole = b""


class OfflineRun:
    """The content of an offline run.

    Attributes:
        config, summary: by key; nested keys are joined with a dot.
        history: one dictionary per logged step.
        artifacts: the artifact records.
        fields: name, group and job_type of the run.
        commit: git commit of the code.
        exit_code: None while the run has not ended.
    """

    def __init__(self, file: Path) -> None:
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: list[Any] = []
        self.fields: dict[str, str] = {}
        self.commit = ""
        self.exit_code: int | None = None
        for record in records(file):
            match record.WhichOneof("record_type"):
                case "run":
                    self.config |= _items(record.run.config.update)
                    run = record.run
                    self.fields = {"name": run.display_name, "group": run.run_group, "job_type": run.job_type}
                case "environment":
                    self.commit = record.environment.git.commit or self.commit
                case "config":
                    self.config |= _items(record.config.update)
                case "summary":
                    self.summary |= _items(record.summary.update)
                case "history":
                    self.history.append(_items(record.history.item))
                case "artifact":
                    self.artifacts.append(record.artifact)
                case "exit":
                    self.exit_code = record.exit.exit_code

    def series(self, key: str) -> list[Any]:
        return [step[key] for step in self.history if key in step]


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
