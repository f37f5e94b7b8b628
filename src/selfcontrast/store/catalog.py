"""List the entries of a store and how they depend on each other."""

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

NOT_STAGES = {locks.FOLDER, runs.FOLDER, trash.FOLDER}  # the other folders of a store
PUBLISHED, IN_PROGRESS, ABANDONED, UNREADABLE = "published", "in progress", "abandoned", "unreadable"


@dataclass(frozen=True)
class Entry:
    """A folder of the store.

    Attributes:
        state: published; in progress (a live process computes it); abandoned (its process ended early); or unreadable
            (published, but its manifest is damaged).
        bytes: size of its files.
        created: seconds since the epoch; the latest change if it is not published.
        used: time of its last use by a recorded run, else `created`.
        manifest: empty if it is not published.
        runs: output folders of the runs that use it and still exist.
        owner: the process that computes it, or abandoned it.
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
        """Keys of its inputs, by role."""
        return dict(self.manifest.get("inputs", {}))

    @cached_property
    def settings(self) -> dict[str, str]:
        """The settings and the version in its key, flattened: "optim.lr" → "0.001"."""
        version = {"version": str(self.manifest["version"])} if self.manifest else {}
        return {**_flat("", self.manifest.get("settings", {})), **version}


@dataclass(frozen=True)
class Catalog:
    """A snapshot of a store."""

    root: Path
    entries: list[Entry]
    runs: list[runs.Recorded]

    @classmethod
    def read(cls, root: Path) -> "Catalog":
        """Read the store at `root`. Raises `UserError` if there is none."""
        if not root.is_dir():
            raise UserError(f"--store {root}: no such folder. Name an existing one, or set SELFCONTRAST_STORE.")
        recorded = runs.all_runs(root)
        folders = (
            f for stage in root.iterdir() if stage.is_dir() and stage.name not in NOT_STAGES for f in stage.iterdir()
        )
        entries = [_entry(root, folder, recorded) for folder in folders if _is_key(folder.name.partition(".")[0])]
        return cls(root, sorted(entries, key=lambda e: (e.stage, e.created)), recorded)

    def find(self, prefix: str) -> Entry:
        """Return the published artifact whose key, or STAGE/KEY, starts with `prefix`.

        Raises:
            UserError: if no key, or more than one, starts with it.
        """
        matches = [e for e in self.published if e.key.startswith(prefix) or e.name.startswith(prefix)]
        if not matches:
            raise UserError(f"{prefix}: no artifact's key starts with it. `selfcontrast store ls` lists all keys.")
        if len(matches) > 1:
            names = ", ".join(e.name for e in matches[:4])
            raise UserError(f"{prefix}: {len(matches)} keys start with it ({names}). Give more digits.")
        return matches[0]

    @cached_property
    def published(self) -> list[Entry]:
        return [e for e in self.entries if e.state in (PUBLISHED, UNREADABLE)]

    def made_from(self, entry: Entry) -> list[Entry]:
        """Return the published artifacts that have the entry as an input."""
        return self._users.get(entry.key, [])

    def inputs_of(self, entry: Entry) -> dict[str, Entry | None]:
        """Return the entry's inputs by role; None for a deleted input."""
        return {role: self._by_key.get(key) for role, key in entry.inputs.items()}

    def differing_settings(self, entry: Entry) -> dict[str, str]:
        """Return the settings, and the inputs as "inputs.ROLE": STAGE/KEY, that differ within the entry's stage.

        An input that is also an input of another input is left out.
        """
        indirect = {key for i in self.inputs_of(entry).values() if i for key in self._ancestors(i)}
        direct = {role: key for role, key in entry.inputs.items() if key not in indirect}
        named = {role: self._by_key[key].name if key in self._by_key else key for role, key in direct.items()}
        settings = {**entry.settings, **_inputs(named)}
        return {name: value for name, value in settings.items() if name in self._differing[entry.stage]}

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
        """Per stage, the names of settings and inputs that differ between its artifacts."""
        differing = {}
        for stage in {e.stage for e in self.entries}:
            values = [
                {**e.settings, **_inputs(e.inputs)} for e in self.entries if e.stage == stage and e.state == PUBLISHED
            ]
            names = {name for artifact in values for name in artifact}
            differing[stage] = {name for name in names if len({artifact.get(name) for artifact in values}) > 1}
        return differing


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
    """Return the creation time in the manifest, or `changed` if it has none."""
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
    """Return the size in bytes and the latest change of a folder. Files deleted meanwhile are skipped."""
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
    """Prefix the roles, since a setting and a role may have the same name."""
    return {f"inputs.{role}": value for role, value in by_role.items()}


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for name, inner in value.items()
            for k, v in _flat(f"{prefix}.{name}" if prefix else name, inner).items()
        }
    return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)} if prefix else {}
