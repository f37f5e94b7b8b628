"""An artifact: its key, its manifest, and the check of its files against the manifest."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from selfcontrast.store.settings import settings_of

MANIFEST = "manifest.json"
IDENTITY = ("stage", "version", "settings", "inputs")  # the fields of a manifest whose hash is the key
RESUME = "resume"  # folder for a stage's state inside its working folder; never published

# Checksums guard against accidents, not against an attacker, who could rewrite the manifest as well. So the fastest
# hash is used: for a model of 15 GB it waits only for the disk, and sha256 takes 12 s. The key itself is a sha256.
CHECKSUM = "xxh3_128"
FOR_PEOPLE = {"history.json"}  # files with timings, which no stage reads
FACTS_CHECKSUM = "facts_checksum"
_HASHES: dict[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}

Stamp = dict[str, tuple[int, ...]]
_intact: dict[Path, Stamp] = {}  # verified folders, with their stamps at that time
_SETTLED = 2.0  # seconds after which a change is sure to give a file a new time stamp


@dataclass(frozen=True)
class Artifact:
    """A published folder. `cached` is True if this process did not compute it."""

    stage: str
    key: str
    path: Path
    manifest: dict[str, Any]
    cached: bool = field(compare=False)

    @classmethod
    def read(cls, folder: Path, cached: bool) -> "Artifact":
        """Read the artifact in `folder` without verifying its files."""
        manifest = read_manifest(folder)
        return cls(manifest["stage"], folder.name, folder, manifest, cached)

    @property
    def seconds(self) -> float:
        """Seconds that the computation took; if it was resumed, only those of the last attempt."""
        return float(self.manifest["seconds"])

    @property
    def created(self) -> float:
        """Time at which it was computed, in seconds since the epoch."""
        return datetime.fromisoformat(self.manifest["created"]).timestamp()

    @cached_property
    def content(self) -> str:
        """Hash of its files (`content_of`)."""
        return content_of(self.manifest)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary that the stage returned."""
        return dict(self.manifest["summary"])


def canonical(value: Any) -> str:
    """Return one text per JSON value, independent of the order of keys. Other values raise TypeError or ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity_of(
    stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, Artifact]
) -> dict[str, Any]:
    """Return the fields of `IDENTITY` as JSON values; components in the settings become their `settings_of`."""
    keys = {role: artifact.key for role, artifact in inputs.items()}
    return {
        "stage": stage,
        "version": version,
        "settings": json.loads(canonical(settings_of(settings))),
        "inputs": keys,
    }


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the key, 20 hexadecimal digits, of the fields of `IDENTITY`."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:20]


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def content_of(manifest: Mapping[str, Any]) -> str:
    """Return a hash of the files that later stages read; "" for a manifest without files."""
    files = {name: checksum for name, checksum in manifest.get("files", {}).items() if name not in FOR_PEOPLE}
    return xxhash.xxh3_128_hexdigest(canonical(files).encode()) if files else ""


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of `folder`: `facts`, and checksums of all files except those under `RESUME`."""
    files = {name: _checksum(folder / name, CHECKSUM) for name in _names(folder) if not _is_resume_state(name)}
    manifest = {**facts, "checksum": CHECKSUM, "files": files}
    write_json(folder / MANIFEST, {**manifest, FACTS_CHECKSUM: _facts_checksum(manifest)})


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.half")
    try:
        with open(partial, "w") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def verify(folder: Path, key: str | None = None) -> str | None:
    """Return what is wrong with an artifact (files or manifest missing, foreign or changed); None if it is intact.

    Args:
        key: the expected key; by default the folder's name.
    """
    return _damage(folder, key or folder.name, _names(folder))


def verify_once(folder: Path) -> str | None:
    """Verify an artifact, unless this process has verified it and its files' stamps are unchanged.

    The first check costs little: it brings the files into the page cache, from which the caller reads them next. The
    jobs of a sweep in one process all load the same model, and without this function each would repeat the check.
    """
    stamp, now = _stamp(folder), time.time()
    if stamp and _intact.get(folder) == stamp:
        return None
    if damage := verify(folder):
        return damage
    # A file that was written just now could change again without a new time stamp, so the next call reads it again.
    if stamp and max(changed for *_, changed in stamp.values()) < (now - _SETTLED) * 1e9:
        _intact[folder] = stamp
    return None


def complete(partial: Path, key: str) -> bool:
    """Return whether a working folder holds the complete artifact `key`, so that only publishing is left."""
    names = {name for name in _names(partial) if not _is_resume_state(name)}
    return (partial / MANIFEST).exists() and not _damage(partial, key, names)


def _damage(folder: Path, name: str, present: set[str]) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, key = dict(manifest["files"]), key_of({part: manifest[part] for part in IDENTITY})
        algorithm = manifest.get("checksum", "sha256")  # early manifests do not name it
        facts_checksum = manifest.get(FACTS_CHECKSUM)  # absent in early manifests
        _ = manifest["summary"], manifest["seconds"], manifest["resumed"], _HASHES[algorithm]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable manifest ({type(error).__name__})"
    if key != name:
        return "its manifest is another artifact's"
    if facts_checksum is not None and facts_checksum != _facts_checksum(manifest):
        return "its manifest has changed since it was written"
    if missing := sorted(files.keys() - present):
        return f"{missing[0]} is missing"
    if foreign := sorted(present - files.keys()):
        return f"{foreign[0]} does not belong there"
    for file, expected in sorted(files.items()):
        try:
            if _checksum(folder / file, algorithm) != expected:
                return f"{file} has changed since it was written"
        except OSError as error:  # a bad sector, or pruned meanwhile
            return f"{file} cannot be read ({error.strerror})"
    return None


def _names(folder: Path) -> set[str]:
    """Return the relative paths of a folder's files, without its manifest. Files deleted meanwhile are skipped."""
    files = (os.path.join(parent, file) for parent, _, names in os.walk(folder) for file in names)
    return {os.path.relpath(file, folder) for file in files} - {MANIFEST}


def _is_resume_state(name: str) -> bool:
    return name.split(os.sep)[0] == RESUME


def _stamp(folder: Path) -> Stamp:
    """Return per file what any change alters: size, inode, modification time and, last, change time."""
    try:
        stats = {name: (folder / name).stat() for name in (*_names(folder), MANIFEST)}
    except OSError:  # damaged (`verify` reports it) or pruned meanwhile
        return {}
    return {name: (s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats.items()}


def _facts_checksum(manifest: Mapping[str, Any]) -> str:
    """Return the checksum of what neither key nor file checksums cover: summary, times and provenance."""
    facts = {
        name: value for name, value in manifest.items() if name not in (*IDENTITY, "files", "checksum", FACTS_CHECKSUM)
    }
    values = json.loads(json.dumps(facts))  # as read back from JSON, where number keys have become strings
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def _checksum(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _HASHES[algorithm]).hexdigest()
