"""What an artifact is: its key, its manifest, and whether its files are what the manifest says."""

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
IDENTITY = ("stage", "version", "settings", "inputs")  # what of a manifest the key is a hash of
RESUME = "resume"  # a stage's own state inside its working folder; never published

# Against accidents, not against an attacker, who could as well rewrite the manifest: so the fastest, which reads a
# model of 15 GB in the time that the disk gives it, where sha256 alone takes 12 s. The key itself stays a sha256.
CHECKSUM = "xxh3_128"
FOR_PEOPLE = {"history.json"}  # files with timings, which no stage reads
OF_FACTS = "facts_checksum"
_HASHES: dict[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}

Stamp = dict[str, tuple[int, ...]]
_intact: dict[Path, Stamp] = {}  # folders whose checksums this process has compared, and what they looked like then
_SETTLED = 2.0  # seconds after which another change must give a file another time stamp


@dataclass(frozen=True)
class Artifact:
    """A published folder. `cached` says that this process did not compute it."""

    stage: str
    key: str
    path: Path
    manifest: dict[str, Any]
    cached: bool = field(compare=False)

    @classmethod
    def read(cls, folder: Path, cached: bool) -> "Artifact":
        """What is published in `folder`, unverified."""
        manifest = read_manifest(folder)
        return cls(manifest["stage"], folder.name, folder, manifest, cached)

    @property
    def seconds(self) -> float:
        """What the computation took, whenever that was; its last attempt alone where the manifest says `resumed`."""
        return float(self.manifest["seconds"])

    @property
    def created(self) -> float:
        """When it was computed, in seconds since the epoch."""
        return datetime.fromisoformat(self.manifest["created"]).timestamp()

    @cached_property
    def content(self) -> str:
        """As `content_of`."""
        return content_of(self.manifest)

    @property
    def summary(self) -> dict[str, Any]:
        """The small facts that the stage returned."""
        return dict(self.manifest["summary"])


def canonical(value: Any) -> str:
    """One text per JSON value, whatever the order of its keys. Raises TypeError or ValueError for any other value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity_of(
    stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, Artifact]
) -> dict[str, Any]:
    """The values of `IDENTITY`, as JSON; of components among the settings, `settings_of`."""
    keys = {role: artifact.key for role, artifact in inputs.items()}
    return {
        "stage": stage,
        "version": version,
        "settings": json.loads(canonical(settings_of(settings))),
        "inputs": keys,
    }


def key_of(identity: Mapping[str, Any]) -> str:
    """20 hexadecimal digits for the values of `IDENTITY`."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:20]


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def content_of(manifest: Mapping[str, Any]) -> str:
    """A hash of the files that later stages read; "" for an artifact that lists none."""
    files = {name: checksum for name, checksum in manifest.get("files", {}).items() if name not in FOR_PEOPLE}
    return xxhash.xxh3_128_hexdigest(canonical(files).encode()) if files else ""


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Completes `folder` by a manifest of `facts` and of all its files but those under `RESUME`."""
    files = {name: _checksum(folder / name, CHECKSUM) for name in _names(folder) if not _resumes(name)}
    manifest = {**facts, "checksum": CHECKSUM, "files": files}
    write_json(folder / MANIFEST, {**manifest, OF_FACTS: _facts_checksum(manifest)})


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is there whole or not at all."""
    half = path.with_name(f"{path.name}.{os.getpid()}.half")
    try:
        with open(half, "w") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def verify(folder: Path, key: str | None = None) -> str | None:
    """What is wrong with an artifact, by default the one that its folder's name says; None where all is well.

    Files can be missing, foreign or changed, and the manifest too.
    """
    return _damage(folder, key or folder.name, _names(folder))


def verify_once(folder: Path) -> str | None:
    """`verify`, which reads no file again that this process has verified and whose time stamps are still the same.

    A first reading costs little, because whoever asks for an artifact reads it next, then from memory. The jobs of a
    sweep in one process, which all ask for the same model, would pay for it each.
    """
    stamp, now = _stamp(folder), time.time()
    if stamp and _intact.get(folder) == stamp:
        return None
    if damage := verify(folder):
        return damage
    # A file written just now could be written once more without another time stamp: it is read again next time.
    if stamp and max(changed for *_, changed in stamp.values()) < (now - _SETTLED) * 1e9:
        _intact[folder] = stamp
    return None


def complete(partial: Path, key: str) -> bool:
    """Whether a working folder holds all of artifact `key`, which then only wants publishing."""
    own = {name for name in _names(partial) if not _resumes(name)}
    return (partial / MANIFEST).exists() and not _damage(partial, key, own)


def _damage(folder: Path, name: str, present: set[str]) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, key = dict(manifest["files"]), key_of({part: manifest[part] for part in IDENTITY})
        algorithm = manifest.get("checksum", "sha256")  # of those written before there was a choice
        of_facts = manifest.get(OF_FACTS)  # none in those written before there was one
        _ = manifest["summary"], manifest["seconds"], manifest["resumed"], _HASHES[algorithm]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable manifest ({type(error).__name__})"
    if key != name:
        return "its manifest is another artifact's"
    if of_facts is not None and of_facts != _facts_checksum(manifest):
        return "its manifest has changed since it was written"
    if missing := sorted(files.keys() - present):
        return f"{missing[0]} is missing"
    if foreign := sorted(present - files.keys()):
        return f"{foreign[0]} does not belong there"
    for file, expected in sorted(files.items()):
        try:
            if _checksum(folder / file, algorithm) != expected:
                return f"{file} has changed since it was written"
        except OSError as error:  # a bad sector, or the whole artifact pruned meanwhile
            return f"{file} cannot be read ({error.strerror})"
    return None


def _names(folder: Path) -> set[str]:
    """The files of a folder but its manifest, as paths in it."""
    found = (
        os.path.join(where, file) for where, _, files in os.walk(folder) for file in files
    )  # of what vanishes none
    return {os.path.relpath(file, folder) for file in found} - {MANIFEST}


def _resumes(name: str) -> bool:
    return name.split(os.sep)[0] == RESUME


def _stamp(folder: Path) -> Stamp:
    """Per file what every change of it changes: size, inode, and times of modification and of change (last)."""
    try:
        stats = {name: (folder / name).stat() for name in (*_names(folder), MANIFEST)}
    except OSError:  # damaged, as `verify` will say, or pruned meanwhile
        return {}
    return {name: (s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats.items()}


def _facts_checksum(manifest: Mapping[str, Any]) -> str:
    """Of what neither the key nor a file's checksum gives away: the summary, the times and the provenance."""
    facts = {name: value for name, value in manifest.items() if name not in (*IDENTITY, "files", "checksum", OF_FACTS)}
    values = json.loads(json.dumps(facts))  # as a reader finds them: a key that is a number is a text there
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def _checksum(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _HASHES[algorithm]).hexdigest()
