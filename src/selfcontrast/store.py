"""Content-addressed artifacts: computed once per content, published atomically, verified when read.

An artifact is a folder `ROOT/STAGE/KEY/` of immutable files with a `manifest.json`. Its key is a hash of what decides
its content: the stage, the stage's version, its settings, and the keys of its inputs. A stage works in
`ROOT/STAGE/KEY.partial/`, which survives a crash, so that a stage that can resume finds what it had; publishing is one
rename. Processes that want the same artifact wait for one computation (a file lock, freed by the kernel when its owner
dies).
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from selfcontrast.provenance import provenance

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
IDENTITY = ("stage", "version", "settings", "inputs")  # what of a manifest the key is a hash of
RESUME = "resume"  # a stage's own state inside its working folder; never published

# Metadata of a dataclass field that cannot change a stage's result (batch sizes, devices, workers).
NOT_IN_KEY = {"in_key": False}


def settings_of(component: Any) -> dict[str, Any]:
    """What decides a component's results: its class and its fields, less those marked `NOT_IN_KEY`."""
    own = {f.name: getattr(component, f.name) for f in fields(component) if f.metadata.get("in_key", True)}
    return {"class": f"{type(component).__module__}.{type(component).__qualname__}", **own}


@dataclass(frozen=True)
class Artifact:
    """A published folder. `cached` says that this process did not compute it."""

    stage: str
    key: str
    path: Path
    manifest: dict[str, Any]
    cached: bool = field(compare=False)

    @property
    def seconds(self) -> float:
        """What the computation took, whenever that was; its last attempt alone where the manifest says `resumed`."""
        return float(self.manifest["seconds"])

    @property
    def summary(self) -> dict[str, Any]:
        """The small facts that the stage returned."""
        return dict(self.manifest["summary"])


class Store:
    """The artifacts under one folder, which processes and machines may share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(
        self,
        stage: str,
        version: int,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        compute: Callable[[Path], Mapping[str, Any] | None],
    ) -> Artifact:
        """The artifact of these settings and inputs, computed if it is not there.

        Args:
            stage: name, and folder, of the stage.
            version: raised whenever the stage's code changes what it computes.
            settings: JSON values that decide the result.
            inputs: the artifacts it is computed from, by role.
            compute: fills the folder it is given; what it returns (a small JSON object) becomes the summary. It
                may keep resumable state under `RESUME` there.
        """
        identity = {
            "stage": stage,
            "version": version,
            "settings": json.loads(canonical(settings)),
            "inputs": {role: artifact.key for role, artifact in inputs.items()},
        }
        key = _key(identity)
        final = self.root / stage / key
        with self._locked(stage, key):
            if found := self._read(final, cached=True):
                return found
            partial = final.with_suffix(".partial")
            partial.mkdir(parents=True, exist_ok=True)
            _clear(partial)
            begun, resumed = time.perf_counter(), (partial / RESUME).exists()
            summary = compute(partial) or {}
            shutil.rmtree(partial / RESUME, ignore_errors=True)
            cost = {"seconds": round(time.perf_counter() - begun, 3), "resumed": resumed}
            self._publish(partial, final, {**identity, "summary": summary, **cost})
            published = self._read(final, cached=False)
            assert published is not None, f"{final} was corrupted while it was published"
            return published

    def _read(self, folder: Path, cached: bool) -> Artifact | None:
        """The artifact in `folder`; None, and the folder gone, where it is damaged."""
        if not folder.exists():
            return None
        if damage := verify(folder):
            log.warning("%s: %s; computing it again", folder, damage)
            shutil.rmtree(folder)
            return None
        manifest = json.loads((folder / MANIFEST).read_text())
        return Artifact(manifest["stage"], folder.name, folder, manifest, cached)

    def _publish(self, partial: Path, final: Path, facts: dict[str, Any]) -> None:
        manifest = {
            **facts,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "provenance": provenance(),
            "files": {str(f.relative_to(partial)): _checksum(f) for f in _files(partial)},
        }
        with open(partial / MANIFEST, "w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, final)

    @contextmanager
    def _locked(self, stage: str, key: str) -> Iterator[None]:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{stage}-{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s: another process is computing it; waiting", stage)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def canonical(value: Any) -> str:
    """One text per JSON value, whatever the order of its keys. Raises TypeError or ValueError for any other value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def verify(folder: Path) -> str | None:
    """What is wrong with a published folder: missing, foreign or changed files; None where all is well."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, key = dict(manifest["files"]), _key({name: manifest[name] for name in IDENTITY})
        _ = manifest["summary"], manifest["seconds"], manifest["resumed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable manifest ({type(error).__name__})"
    if key != folder.name:
        return "its manifest is another artifact's"
    present = {str(f.relative_to(folder)) for f in _files(folder)}
    if missing := sorted(files.keys() - present):
        return f"{missing[0]} is missing"
    if foreign := sorted(present - files.keys()):
        return f"{foreign[0]} does not belong there"
    changed = [name for name, expected in sorted(files.items()) if _checksum(folder / name) != expected]
    return f"{changed[0]} has changed since it was written" if changed else None


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:20]


def _clear(partial: Path) -> None:
    """Leaves of an earlier attempt what it kept for this one: nothing else of it may be published."""
    for left in partial.iterdir():
        if left.name != RESUME:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / MANIFEST)


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
