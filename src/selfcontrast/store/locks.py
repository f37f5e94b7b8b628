"""Lock an artifact, so that one process computes it while the others wait.

The lock is the kernel's flock, because only the kernel knows at once that an owner has died. On Linux, flock works
across machines that share an NFS mount; docs/store.md says what other file systems need. A lease (a file that its owner
touches) would need no flock, but if its owner paused for long, two processes could hold one artifact.
"""

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from selfcontrast.errors import UserError
from selfcontrast.store.artifact import write_json

log = logging.getLogger(__name__)

FOLDER = "locks"
POLL = 0.5  # seconds between attempts to take a lock


@dataclass(frozen=True)
class Owner:
    """The process that computes an artifact, as shown to people. Only the lock itself says whether it lives."""

    host: str
    pid: int
    since: str  # ISO 8601, UTC

    def __str__(self) -> str:
        since = datetime.fromisoformat(self.since).astimezone()
        today = since.date() == datetime.now().astimezone().date()
        return f"{self.host}:{self.pid} since {since:{'%H:%M' if today else '%Y-%m-%d %H:%M'}}"


@contextmanager
def locked(root: Path, stage: str, key: str) -> Iterator[None]:
    """Hold the artifact's lock, waiting for it if needed. Raises `UserError` if the file system has no locks."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    lock = _lock(root, stage, key)
    with _explained(root):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for %s, being computed by %s", stage, owner(root, stage, key) or "another process")
            lock.acquire()
    try:
        if previous := owner(root, stage, key):
            log.info("%s: taking over from %s, which ended before it was done", stage, previous)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(_record(root, stage, key), asdict(Owner(socket.gethostname(), os.getpid(), now)))
        yield
        _record(root, stage, key).unlink(missing_ok=True)  # after an error the record stays: the artifact is unfinished
    finally:
        lock.release()


@contextmanager
def locked_if_free(root: Path, stage: str, key: str) -> Iterator[bool]:
    """Yield True while holding the artifact's lock, or False if another process holds it."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    lock = _lock(root, stage, key)
    with _explained(root):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
    try:
        yield True
    finally:
        lock.release()


def in_progress(root: Path, stage: str, key: str) -> bool:
    """Return whether a live process, on any machine that shares the store, holds the artifact's lock."""
    if not _path(root, stage, key).exists():
        return False
    with locked_if_free(root, stage, key) as free:
        return not free


def owner(root: Path, stage: str, key: str) -> Owner | None:
    """Return the process that holds the lock, or that held it and ended before the artifact was finished."""
    try:
        return Owner(**json.loads(_record(root, stage, key).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def all_locks(root: Path) -> list[tuple[str, str]]:
    """Return stage and key of every lock file, held or not."""
    names = (lock.stem.rpartition("-") for lock in (root / FOLDER).glob("*.lock"))
    return sorted((stage, key) for stage, _, key in names)


def remove(root: Path, stage: str, key: str) -> None:
    """Delete a lock that this process holds. In waiting processes, filelock notices it and creates the lock again."""
    _record(root, stage, key).unlink(missing_ok=True)
    _path(root, stage, key).unlink(missing_ok=True)


def _lock(root: Path, stage: str, key: str) -> FileLock:
    # A soft lock, filelock's fallback, would outlive its owner.
    return FileLock(_path(root, stage, key), poll_interval=POLL, fallback_to_soft=False)


def _path(root: Path, stage: str, key: str) -> Path:
    return root / FOLDER / f"{stage}-{key}.lock"


def _record(root: Path, stage: str, key: str) -> Path:
    """Return the file that names the owner. Over NFS, reading and closing the lock file would release the lock."""
    return root / FOLDER / f"{stage}-{key}.owner"


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        raise UserError(
            f"store={root}: its file system has no file locks ({error.strerror}). "
            "Mount it with locks (Lustre: -o flock; NFS: without nolock), or choose another folder."
        ) from error
