"""Deleting that can be interrupted: a folder first leaves its name in one rename, then its files go."""

import os
import shutil
import uuid
from pathlib import Path

FOLDER = "trash"


def discard(root: Path, path: Path) -> Path:
    """Moves a file or folder of the store out of everyone's sight; `empty` then deletes it.

    A process that has its files open reads on: they have their old content, whatever takes the name.
    """
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    gone = root / FOLDER / f"{path.parent.name}-{path.name}-{uuid.uuid4().hex[:8]}"
    os.rename(path, gone)
    return gone


def empty(*discarded: Path) -> None:
    """What cannot be deleted yet (over NFS a file that is open elsewhere) is left for `prune`."""
    for path in discarded:
        shutil.rmtree(path, ignore_errors=True)
