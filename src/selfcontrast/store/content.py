"""The content of files that a job reads: hashed once, and compared again after they were read.

A key must say what was read. The time between hashing a file and reading it can be minutes, in which an editor or a
download may replace it. So a component hashes its file or folder once, keeps that `Content`, and asks it after
reading whether it is still the same.
"""

import hashlib
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError

Stamp = tuple[tuple[str, int, int, int, int], ...]
_NOTE = "_content"
_SETTLED = 2.0  # seconds after which another change must give a file another time stamp


@dataclass(frozen=True)
class Content:
    """The hash of a file's bytes, or of a folder's names and files.

    Attributes:
        hash: SHA-256 in hexadecimal; a folder's begins with "sha256:".
        stamp: size, inode and times per file, taken before hashing.
        settled: whether a later change must show in the stamp.
    """

    place: Path
    hash: str
    stamp: Stamp
    settled: bool

    @classmethod
    def of(cls, place: Path) -> "Content":
        """Hash a file or folder. Files whose stamps this process has hashed before are not read again."""
        stamp = stamp_of(place)
        settled = max((changed for *_, changed in stamp), default=0) < (time.time() - _SETTLED) * 1e9
        return cls(place, _cached(place, stamp) if settled else hash_of(place), stamp, settled)

    def check(self, setting: str) -> None:
        """Raise `UserError` if the content is another by now; `setting` names it. Call it after reading."""
        try:
            same = stamp_of(self.place) == self.stamp and (self.settled or hash_of(self.place) == self.hash)
        except OSError:
            same = False
        if not same:
            raise UserError(
                f"{setting}={self.place} has changed while this job was reading it; run the same command again"
            )


def note(owner: Any, place: Path) -> Content:
    """Hash what a component is about to read, or to be keyed by, and let it remember that (`noted`)."""
    content = Content.of(place)
    vars(owner)[_NOTE] = content  # not a field: it is no setting, and a frozen dataclass has no other way
    return content


def noted(owner: Any) -> Content | None:
    """What the component noted last; None if nothing."""
    found: Content | None = vars(owner).get(_NOTE)
    return found


def hash_of(place: Path) -> str:
    """Hash a file or folder now."""
    return folder_hash(place) if place.is_dir() else file_hash(place)


def file_hash(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's files, those of hidden folders left out."""
    digest = hashlib.sha256()
    for name in _names(folder):
        digest.update(f"{name.as_posix()}\0{file_hash(folder / name)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def stamp_of(place: Path) -> Stamp:
    """Per file what every change of it changes: size, inode, and times of modification and of change (last)."""
    files = [place / name for name in _names(place)] if place.is_dir() else [place]
    stats = [(str(file), os.stat(file)) for file in files]
    return tuple((name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


def _names(folder: Path) -> list[Path]:
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in names if not any(part.startswith(".") for part in name.parts[:-1]))


@lru_cache(maxsize=64)
def _cached(place: Path, stamp: Stamp) -> str:
    return hash_of(place)
