"""What is in a store, and what hangs together in it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.store import locks, runs, trash
from selfcontrast.store.artifact import IDENTITY, MANIFEST
from selfcontrast.store.locks import Owner

OWN = {locks.FOLDER, runs.FOLDER, trash.FOLDER}  # folders of a store that are no stages
PUBLISHED, IN_PROGRESS, ABANDONED, UNREADABLE = "published", "in progress", "abandoned", "unreadable"


@dataclass(frozen=True)
class Entry:
    """A folder of the store.

    Attributes:
        state: published; in progress, by a live process; abandoned, by one that ended before it was done; or
            unreadable: published, but its manifest is damaged.
        bytes: of its files.
        created: seconds since the epoch; of what is not published the latest change.
        used: when it was last asked for by a run that is on record, else `created`.
        manifest: empty for what is not published.
        runs: output folders of the runs that use it and still exist.
        owner: who computes it, or did.
    """

    stage: str
    key: str
    folder: Path
    state: str
    bytes: int
    created: float
    used: float
    manifest: dict[str, Any] = field(repr=False)
    runs: tuple[Path, ...]
    owner: Owner | None

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.key}"

    @property
    def inputs(self) -> dict[str, str]:
        """Keys by role."""
        return dict(self.manifest.get("inputs", {}))

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the key is made of, flat: "recipe.lr" → "0.001"."""
        settings = _flat("", self.manifest.get("settings", {}))
        inputs = {f"inputs.{role}": key[:8] for role, key in self.inputs.items()}
        version = {"version": str(self.manifest["version"])} if self.manifest else {}
        return {**settings, **inputs, **version}


@dataclass(frozen=True)
class Catalog:
    """All of a store at one moment."""

    root: Path
    entries: list[Entry]
    runs: list[runs.Recorded]

    @classmethod
    def read(cls, root: Path) -> "Catalog":
        """Raises `UserError` where there is no store."""
        if not root.is_dir():
            raise UserError(f"--store {root}: no such folder; give one, or set SELFCONTRAST_STORE")
        recorded = runs.all_runs(root)
        folders = (f for stage in root.iterdir() if stage.is_dir() and stage.name not in OWN for f in stage.iterdir())
        entries = [_entry(root, folder, recorded) for folder in folders if _is_key(folder.name.partition(".")[0])]
        return cls(root, sorted(entries, key=lambda e: (e.stage, e.created)), recorded)

    def find(self, prefix: str) -> Entry:
        """The published artifact that is meant by the beginning of its key, or of STAGE/KEY.

        Raises:
            UserError: where none is, or several are.
        """
        found = [e for e in self.published if e.key.startswith(prefix) or e.name.startswith(prefix)]
        if not found:
            raise UserError(f"{prefix}: no artifact's key begins so; python -m selfcontrast.store ls shows them")
        if len(found) > 1:
            raise UserError(f"{prefix}: could be {' or '.join(e.name for e in found[:4])}; give more of the key")
        return found[0]

    @property
    def published(self) -> list[Entry]:
        return [e for e in self.entries if e.state in (PUBLISHED, UNREADABLE)]

    def made_from(self, entry: Entry) -> list[Entry]:
        """Those published artifacts of which it is an input."""
        return [e for e in self.published if entry.key in e.inputs.values()]

    def inputs_of(self, entry: Entry) -> dict[str, Entry | None]:
        """By role; None for one that is no longer there."""
        by_key = {e.key: e for e in self.published}
        return {role: by_key.get(key) for role, key in entry.inputs.items()}

    def distinguishing(self, entry: Entry) -> dict[str, str]:
        """What of the entry's identity is not the same in all artifacts of its stage."""
        siblings = [e.identity for e in self.entries if e.stage == entry.stage and e.state == PUBLISHED]
        return {
            name: value
            for name, value in entry.identity.items()
            if any(sibling.get(name) != value for sibling in siblings)
        }


def _entry(root: Path, folder: Path, recorded: Iterable[runs.Recorded]) -> Entry:
    stage, (key, _, unfinished) = folder.parent.name, folder.name.partition(".")
    manifest: dict[str, Any] = {}
    if unfinished:
        state = IN_PROGRESS if locks.in_progress(root, stage, key) else ABANDONED
    else:
        manifest = _manifest(folder)
        state = PUBLISHED if manifest else UNREADABLE
    size, changed = _measure(folder)
    created = datetime.fromisoformat(manifest["created"]).timestamp() if "created" in manifest else changed
    users = [run for run in recorded if f"{stage}/{key}" in run.artifacts]
    return Entry(
        stage,
        key,
        folder,
        state,
        size,
        created,
        max([created, *(run.used for run in users)]),
        manifest,
        tuple(run.folder for run in users if run.exists),
        locks.owner(root, stage, key) if unfinished else None,
    )


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest if isinstance(manifest, dict) and set(IDENTITY) <= manifest.keys() else {}
    except (OSError, ValueError):
        return {}


def _measure(folder: Path) -> tuple[int, float]:
    """Bytes and the latest change of a folder; files may vanish meanwhile."""
    size, changed = 0, 0.0
    for path in (folder, *folder.rglob("*")):
        try:
            stat = path.stat()
        except OSError:
            continue
        size += stat.st_size if path.is_file() else 0
        changed = max(changed, stat.st_mtime)
    return size, changed


def _is_key(name: str) -> bool:
    return len(name) == 20 and set(name) <= set("0123456789abcdef")


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for name, inner in value.items()
            for k, v in _flat(f"{prefix}.{name}" if prefix else name, inner).items()
        }
    return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)} if prefix else {}
