"""Which runs use which artifacts: one small file per run, so that pruning spares what a report still points at."""

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
    """The run whose output folder is `folder`, as it goes on; only its own process writes its record."""

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
        """Records an artifact, before it is looked for: `prune` looks here after it has taken one away."""
        self.artifacts[f"{stage}/{key}"] = None
        try:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            self.facts["from_store"] = _from(self.root, self.folder)
            write_json(self.record, {**self.facts, "artifacts": list(self.artifacts)})
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            # A store that one may only read: its owner prunes it.


@dataclass(frozen=True)
class Recorded:
    """A run's record.

    Attributes:
        folder: its output folder, as its machine called it.
        from_store: the way there from the store's folder, where both are on one file system; None elsewhere.
        artifacts: "STAGE/KEY" of each.
        used: when the last of them was asked for, seconds since the epoch.
    """

    record: Path
    folder: Path
    host: str
    from_store: str | None
    artifacts: tuple[str, ...]
    used: float = field(compare=False)

    @classmethod
    def read(cls, record: Path) -> "Recorded | None":
        """None where there is no record, or none that can be read."""
        try:
            facts, used = json.loads(record.read_text()), record.stat().st_mtime
            return cls(
                record, Path(facts["folder"]), facts["host"], facts["from_store"], tuple(facts["artifacts"]), used
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def exists(self) -> bool:
        """Whether its output folder is still there; a folder on another machine's own disk is taken to be."""
        if self.from_store is not None:
            return (self.record.parents[1] / self.from_store).exists()
        return self.host != socket.gethostname() or self.folder.exists()


def all_runs(root: Path) -> list[Recorded]:
    """Every run on record, the latest last."""
    found = [Recorded.read(record) for record in (root / FOLDER).glob("*.json")]
    return sorted((run for run in found if run), key=lambda run: run.used)


def _from(root: Path, folder: Path) -> str | None:
    try:
        shared = root.stat().st_dev == folder.stat().st_dev
    except OSError:  # a run that has written nothing yet
        return None
    return os.path.relpath(folder.resolve(), root.resolve()) if shared else None
