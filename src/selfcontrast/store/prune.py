"""Choose what may be deleted from a store, and delete it while other processes use the store."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from selfcontrast.store import locks, runs, trash
from selfcontrast.store.catalog import ABANDONED, IN_PROGRESS, Catalog, Entry


@dataclass(frozen=True)
class PruneQuery:
    """A selection of entries to delete.

    Attributes:
        stages: only these stages; empty = all.
        unused_for: minimum seconds since the last use.
        keys: only these keys; empty = all.
        used: True to also delete entries that a run or a kept artifact depends on.
    """

    stages: Collection[str] = ()
    unused_for: float = 0
    keys: Collection[str] = ()
    used: bool = False

    def matches(self, entry: Entry, now: float) -> bool:
        return (
            (not self.stages or entry.stage in self.stages)
            and (not self.keys or entry.key in self.keys)
            and now - entry.used >= self.unused_for
        )


def choose(catalog: Catalog, query: PruneQuery) -> list[Entry]:
    """Return the entries to delete: none in progress and, unless `used`, none that a run or a kept entry needs."""
    now = time.time()
    chosen = {e.folder: e for e in catalog.entries if e.state != IN_PROGRESS and query.matches(e, now)}
    if query.used:
        return list(chosen.values())
    kept = [e for e in catalog.published if e.runs or e.folder not in chosen]
    while kept:  # keep their inputs, too
        entry = kept.pop()
        chosen.pop(entry.folder, None)
        kept += [e for e in catalog.inputs_of(entry).values() if e and e.folder in chosen]
    return list(chosen.values())


def delete(root: Path, entry: Entry, used: bool) -> bool:
    """Delete the entry, unless a process holds its lock or a run has started to use it. Return whether it is gone.

    A run records an artifact before it looks the artifact up. So the records are read again after the artifact was
    moved away: either the run is on record by then and the artifact is moved back, or the run finds no artifact.
    """
    with locks.locked_if_free(root, entry.stage, entry.key) as free:
        if not free or not entry.folder.exists():
            return False
        protect = not used and entry.state != ABANDONED
        if protect and _has_run(root, entry):
            return False
        discarded = trash.discard(root, entry.folder)
        if protect and _has_run(root, entry):
            discarded.rename(entry.folder)
            return False
    trash.empty(discarded)
    return True


def sweep(root: Path) -> None:
    """Remove leftovers: discarded folders, locks that no process holds, and records of runs that no longer exist."""
    trash.empty(*(root / trash.FOLDER).glob("*"))
    for stage, key in locks.all_locks(root):
        if (root / stage / f"{key}.partial").exists():
            continue  # the file beside the lock names the process that abandoned it
        with locks.locked_if_free(root, stage, key) as free:
            if free:
                locks.remove(root, stage, key)
    for run in runs.all_runs(root):
        if not run.exists:
            run.record.unlink(missing_ok=True)


def _has_run(root: Path, entry: Entry) -> bool:
    return any(entry.name in run.artifacts and run.exists for run in runs.all_runs(root))
