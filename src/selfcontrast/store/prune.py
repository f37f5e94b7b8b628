"""What may be deleted from a store, and deleting it while others use the store."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from selfcontrast.store import locks, runs, trash
from selfcontrast.store.catalog import ABANDONED, IN_PROGRESS, Catalog, Entry


@dataclass(frozen=True)
class Wish:
    """What the user would be rid of.

    Attributes:
        stages: of these only; all where there are none.
        unused_for: seconds since it was last asked for, at least.
        keys: these only; all where there are none.
        used: even what a run or an artifact that stays depends on.
    """

    stages: Collection[str] = ()
    unused_for: float = 0
    keys: Collection[str] = ()
    used: bool = False

    def meets(self, entry: Entry, now: float) -> bool:
        return (
            (not self.stages or entry.stage in self.stages)
            and (not self.keys or entry.key in self.keys)
            and now - entry.used >= self.unused_for
        )


def choose(catalog: Catalog, wish: Wish) -> list[Entry]:
    """What the wish comes to: never what is in progress, and, unless `used`, nothing that what stays depends on."""
    now = time.time()
    chosen = {e.folder: e for e in catalog.entries if e.state != IN_PROGRESS and wish.meets(e, now)}
    if wish.used:
        return list(chosen.values())
    spared = [e for e in catalog.published if e.runs or e.folder not in chosen]
    while spared:  # and what they are made from
        entry = spared.pop()
        chosen.pop(entry.folder, None)
        spared += [e for e in catalog.inputs_of(entry).values() if e and e.folder in chosen]
    return list(chosen.values())


def delete(root: Path, entry: Entry, used: bool) -> bool:
    """Deletes the entry, unless a process holds its lock, or a run has begun to use it since it was chosen.

    A run records an artifact before it looks for it. So it is looked for in the records once more after the artifact
    has lost its name: either the run is on record by then, and the artifact gets its name back, or the run finds none.
    """
    with locks.locked_if_free(root, entry.stage, entry.key) as free:
        if not free or not entry.folder.exists():
            return False
        spare = not used and entry.state != ABANDONED
        if spare and _has_run(root, entry):
            return False
        gone = trash.discard(root, entry.folder)
        if spare and _has_run(root, entry):
            gone.rename(entry.folder)
            return False
    trash.empty(gone)
    return True


def sweep(root: Path) -> None:
    """Removes what nobody can miss: what is left of deleting, locks nobody holds, and records of runs that are gone."""
    trash.empty(*(root / trash.FOLDER).glob("*"))
    for stage, key in locks.all_locks(root):
        if (root / stage / f"{key}.partial").exists():
            continue  # says who abandoned it
        with locks.locked_if_free(root, stage, key) as free:
            if free:
                locks.remove(root, stage, key)
    for run in runs.all_runs(root):
        if not run.exists:
            run.record.unlink(missing_ok=True)


def _has_run(root: Path, entry: Entry) -> bool:
    return any(entry.name in run.artifacts and run.exists for run in runs.all_runs(root))
