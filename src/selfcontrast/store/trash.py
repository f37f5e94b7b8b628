"""Delete folders safely: rename the folder away first, then delete its files, so that an interruption does no harm."""

import os
import shutil
import uuid
from pathlib import Path

FOLDER = "trash"


def discard(root: Path, path: Path) -> Path:
    """Move a file or folder of the store into the trash, from which `empty` deletes it. Return its new path.

    Processes that have its files open can still read them.
    """
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    target = root / FOLDER / f"{path.parent.name}-{path.name}-{uuid.uuid4().hex[:8]}"
    os.rename(path, target)
    return target


def empty(*discarded: Path) -> None:
    """Delete discarded paths. Files that cannot be deleted yet (over NFS, open elsewhere) are left for `prune`."""
    for path in discarded:
        shutil.rmtree(path, ignore_errors=True)
