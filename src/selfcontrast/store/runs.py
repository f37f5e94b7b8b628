"""Record which run uses which artifacts, in one small file per run, so that pruning keeps what a report refers to."""

import errno
import hashlib
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from selfcontrast.store.artifact import write_json

FOLDER = "runs"


class Run:
    """The current run, whose output folder is `folder`. Only its own process writes its record."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder.absolute()
        self.root = root
        host = socket.gethostname()
        name = hashlib.sha256(f"{host}:{self.folder}".encode()).hexdigest()[:20]
        self.record = root / FOLDER / f"{name}.json"
        earlier = Recorded.read(self.record)
        self.facts = {"folder": str(self.folder), "host": host, "from_store": None}
        self.artifacts = dict.fromkeys(earlier.artifacts if earlier else ())

    def uses(self, stage: str, key: str) -> None:
        """Record a use before the artifact is looked up: `prune` moves an artifact away before it reads the records."""
        self.artifacts[f"{stage}/{key}"] = None
        try:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            self.facts["from_store"] = _relative_to_store(self.root, self.folder)
            write_json(self.record, {**self.facts, "artifacts": list(self.artifacts)})
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            # The store is read-only for this user; only its owner prunes it.


@dataclass(frozen=True)
class Recorded:
    """A run's record.

    Attributes:
        folder: the run's output folder, as a path on the run's own machine.
        from_store: the same folder, relative to the store, if both are on one file system; else None.
        artifacts: "STAGE/KEY" of each artifact that the run uses.
        used: time of the last use, in seconds since the epoch.
    """

    record: Path
    folder: Path
    host: str
    from_store: str | None
    artifacts: tuple[str, ...]
    used: float = field(compare=False)

    @classmethod
    def read(cls, record: Path) -> "Recorded | None":
        """Read a record; None if it is missing or unreadable."""
        try:
            facts, used = json.loads(record.read_text()), record.stat().st_mtime
            return cls(
                record, Path(facts["folder"]), facts["host"], facts["from_store"], tuple(facts["artifacts"]), used
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def exists(self) -> bool:
        """True if the output folder still exists. A folder on another machine's disk is assumed to exist."""
        if self.from_store is not None:
            return (self.record.parents[1] / self.from_store).exists()
        return self.host != socket.gethostname() or self.folder.exists()


def all_runs(root: Path) -> list[Recorded]:
    """Return every recorded run, the latest last."""
    records = [Recorded.read(record) for record in (root / FOLDER).glob("*.json")]
    return sorted((run for run in records if run), key=lambda run: run.used)


def _relative_to_store(root: Path, folder: Path) -> str | None:
    try:
        shared = root.stat().st_dev == folder.stat().st_dev
    except OSError:  # the run has written nothing yet
        return None
    return os.path.relpath(folder.resolve(), root.resolve()) if shared else None
