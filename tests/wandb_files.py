"""Read W&B's offline files: LevelDB logs of `Record` messages, for which the package has no reader class."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, MAGIC = 32768, 7, b":W&B"


def records(file: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _log(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        yield record


def _log(data: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log, which has blocks of 32 KiB.

    A chunk begins with 4 bytes of checksum, 2 bytes of length and 1 byte of type. A chunk of type 1 is a whole record.
    A longer record has a first chunk (type 2), middle chunks (type 3) and a last chunk (type 4).
    """
    assert data.startswith(MAGIC)
    position, record = HEADER, b""
    while position < len(data):
        rest_of_block = BLOCK - position % BLOCK
        if rest_of_block < HEADER:
            position += rest_of_block
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        start = position + HEADER
        record += data[start : start + length]
        position = start + length
        if kind in (1, 4):
            yield record
            record = b""


class OfflineRun:
    """The content of an offline run.

    Attributes:
        config, summary: values by key; nested keys are joined with a dot.
        history: one dictionary per logged step.
        artifacts: artifact records.
        fields: name, group and job_type of the run.
        commit: commit of the code.
        exit_code: None until the run has ended.
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
