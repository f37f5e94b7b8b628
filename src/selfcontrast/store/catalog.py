"""What is in a store, and what hangs together in it."""

import json
from collections.abc import Iterable, Mapping
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
    def settings(self) -> dict[str, str]:
        """The settings and the version that the key is made of, flat: "optim.lr" → "0.001"."""
        version = {"version": str(self.manifest["version"])} if self.manifest else {}
        return {**_flat("", self.manifest.get("settings", {})), **version}


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
            raise UserError(f"{prefix}: no artifact's key begins so; selfcontrast store ls shows them")
        if len(found) > 1:
            raise UserError(f"{prefix}: could be {' or '.join(e.name for e in found[:4])}; give more of the key")
        return found[0]

    @cached_property
    def published(self) -> list[Entry]:
        return [e for e in self.entries if e.state in (PUBLISHED, UNREADABLE)]

    def made_from(self, entry: Entry) -> list[Entry]:
        """Those published artifacts of which it is an input."""
        return self._users.get(entry.key, [])

    def inputs_of(self, entry: Entry) -> dict[str, Entry | None]:
        """By role; None for one that is no longer there."""
        return {role: self._by_key.get(key) for role, key in entry.inputs.items()}

    def apart(self, entry: Entry) -> dict[str, str]:
        """What tells it from the other artifacts of its stage: settings, and as "inputs.ROLE" inputs, as STAGE/KEY.

        An input that another one was made from goes without saying.
        """
        indirect = {key for i in self.inputs_of(entry).values() if i for key in self._ancestors(i)}
        direct = {role: key for role, key in entry.inputs.items() if key not in indirect}
        named = {role: self._by_key[key].name if key in self._by_key else key for role, key in direct.items()}
        every = {**entry.settings, **_inputs(named)}
        return {name: value for name, value in every.items() if name in self._differing[entry.stage]}

    def _ancestors(self, entry: Entry) -> set[str]:
        direct = set(entry.inputs.values())
        return direct.union(*(self._ancestors(e) for e in self.inputs_of(entry).values() if e))

    @cached_property
    def _by_key(self) -> dict[str, Entry]:
        return {e.key: e for e in self.published}

    @cached_property
    def _users(self) -> dict[str, list[Entry]]:
        users: dict[str, list[Entry]] = {}
        for entry in self.published:
            for key in set(entry.inputs.values()):
                users.setdefault(key, []).append(entry)
        return users

    @cached_property
    def _differing(self) -> dict[str, set[str]]:
        """Per stage the names of settings and inputs that are not the same in all its artifacts."""
        found = {}
        for stage in {e.stage for e in self.entries}:
            every = [
                {**e.settings, **_inputs(e.inputs)} for e in self.entries if e.stage == stage and e.state == PUBLISHED
            ]
            names = {name for one in every for name in one}
            found[stage] = {name for name in names if len({one.get(name) for one in every}) > 1}
        return found


def _entry(root: Path, folder: Path, recorded: Iterable[runs.Recorded]) -> Entry:
    stage, (key, _, unfinished) = folder.parent.name, folder.name.partition(".")
    manifest: dict[str, Any] = {}
    if unfinished:
        state = IN_PROGRESS if locks.in_progress(root, stage, key) else ABANDONED
    else:
        manifest = _manifest(folder)
        state = PUBLISHED if manifest else UNREADABLE
    size, changed = _measure(folder)
    created = _created(manifest, changed)
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


def _created(manifest: Mapping[str, Any], changed: float) -> float:
    """When an artifact was made, by its manifest, if that says so."""
    try:
        return datetime.fromisoformat(manifest["created"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return changed


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


def _inputs(by_role: Mapping[str, str]) -> dict[str, str]:
    """Under names that no setting has: a setting and a role may well have the same."""
    return {f"inputs.{role}": value for role, value in by_role.items()}


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for name, inner in value.items()
            for k, v in _flat(f"{prefix}.{name}" if prefix else name, inner).items()
        }
    return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)} if prefix else {}
