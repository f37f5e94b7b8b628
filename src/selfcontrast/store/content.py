"""Hash the files that a job reads, and check after reading that they have not changed.

A key must match what was read. Minutes can pass between hashing a file and reading it, and an editor or a download may
replace the file meanwhile. So a component hashes its file or folder once, keeps the `Content`, and checks it after
reading.
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
_SETTLED = 2.0  # seconds after which a change is sure to give a file a new time stamp


@dataclass(frozen=True)
class Content:
    """The hash of a file's bytes, or of a folder's names and files.

    Attributes:
        hash: SHA-256 in hexadecimal; a folder's hash begins with "sha256:".
        stamp: size, inode and times per file, taken before hashing.
        settled: True if a later change is sure to alter the stamp.
    """

    path: Path
    hash: str
    stamp: Stamp
    settled: bool

    @classmethod
    def of(cls, path: Path) -> "Content":
        """Hash a file or folder. Files that this process has hashed with the same stamp are not read again."""
        stamp = stamp_of(path)
        settled = max((changed for *_, changed in stamp), default=0) < (time.time() - _SETTLED) * 1e9
        return cls(path, _cached(path, stamp) if settled else hash_of(path), stamp, settled)

    def check(self, setting: str) -> None:
        """Raise `UserError`, with the name of the setting, if the content has changed. Call it after reading."""
        try:
            unchanged = stamp_of(self.path) == self.stamp and (self.settled or hash_of(self.path) == self.hash)
        except OSError:
            unchanged = False
        if not unchanged:
            raise UserError(
                f"{setting}={self.path} has changed while this job was reading it. Run the same command again."
            )


def note(owner: Any, path: Path) -> Content:
    """Hash a path that a component reads or has in its key. Keep the result on the component, for `noted`."""
    content = Content.of(path)
    vars(owner)[_NOTE] = content  # not a field, because it is not a setting and the dataclass is frozen
    return content


def noted(owner: Any) -> Content | None:
    """Return the content that the component noted last, if any."""
    content: Content | None = vars(owner).get(_NOTE)
    return content


def hash_of(path: Path) -> str:
    """Hash a file or folder now."""
    return folder_hash(path) if path.is_dir() else file_hash(path)


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path) -> str:
    """Return the SHA-256 over names and contents of a folder's files, without hidden folders."""
    digest = hashlib.sha256()
    for name in _names(folder):
        digest.update(f"{name.as_posix()}\0{file_hash(folder / name)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def stamp_of(path: Path) -> Stamp:
    """Return per file what any change alters: size, inode, modification time and, last, change time."""
    files = [path / name for name in _names(path)] if path.is_dir() else [path]
    stats = [(str(file), os.stat(file)) for file in files]
    return tuple((name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


def _names(folder: Path) -> list[Path]:
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in names if not any(part.startswith(".") for part in name.parts[:-1]))


@lru_cache(maxsize=64)
def _cached(path: Path, stamp: Stamp) -> str:
    return hash_of(path)
