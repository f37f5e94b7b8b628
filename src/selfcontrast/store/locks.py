"""One process at a time computes an artifact; the others wait, and are told for whom.

The lock is the kernel's (flock), because only the kernel knows at once that an owner has died. On Linux flock reaches
between the machines that share an NFS mount; docs/store.md says what other file systems need. A lease (a file whose
owner touches it) would go without it, but two processes could then own one artifact, the first after a long pause.
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
POLL = 0.5  # seconds between two looks at a lock that another process has


@dataclass(frozen=True)
class Owner:
    """Who computes an artifact. It lies beside the lock, for people: whether it lives, only the lock says."""

    host: str
    pid: int
    since: str  # ISO 8601, UTC

    def __str__(self) -> str:
        since = datetime.fromisoformat(self.since).astimezone()
        today = since.date() == datetime.now().astimezone().date()
        return f"{self.host}:{self.pid} since {since:{'%H:%M' if today else '%Y-%m-%d %H:%M'}}"


@contextmanager
def locked(root: Path, stage: str, key: str) -> Iterator[None]:
    """Holds the artifact's lock, for which it waits if need be. Raises `UserError` where there can be no locks."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    lock = _lock(root, stage, key)
    with _explained(root):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for %s, being computed by %s", stage, owner(root, stage, key) or "another process")
            lock.acquire()
    try:
        if left := owner(root, stage, key):
            log.info("%s: taking over from %s, which ended before it was done", stage, left)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(_record(root, stage, key), asdict(Owner(socket.gethostname(), os.getpid(), now)))
        yield
        _record(root, stage, key).unlink(missing_ok=True)  # not where it raised: that was not done either
    finally:
        lock.release()


@contextmanager
def locked_if_free(root: Path, stage: str, key: str) -> Iterator[bool]:
    """Holds the artifact's lock, and says so, unless another process has it."""
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
    """Whether a live process, of any machine that shares the store, holds the artifact's lock."""
    if not _path(root, stage, key).exists():
        return False
    with locked_if_free(root, stage, key) as free:
        return not free


def owner(root: Path, stage: str, key: str) -> Owner | None:
    """Who has the lock, or had it and ended before the artifact was done."""
    try:
        return Owner(**json.loads(_record(root, stage, key).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def all_locks(root: Path) -> list[tuple[str, str]]:
    """Stage and key of every lock there is, held or not."""
    names = (lock.stem.rpartition("-") for lock in (root / FOLDER).glob("*.lock"))
    return sorted((stage, key) for stage, _, key in names)


def remove(root: Path, stage: str, key: str) -> None:
    """Deletes a lock that this process holds. Whoever waits for it notices (filelock), and makes it anew."""
    _record(root, stage, key).unlink(missing_ok=True)
    _path(root, stage, key).unlink(missing_ok=True)


def _lock(root: Path, stage: str, key: str) -> FileLock:
    # The fallback would be a lock that outlives its owner.
    return FileLock(_path(root, stage, key), poll_interval=POLL, fallback_to_soft=False)


def _path(root: Path, stage: str, key: str) -> Path:
    return root / FOLDER / f"{stage}-{key}.lock"


def _record(root: Path, stage: str, key: str) -> Path:
    """A file of its own: over NFS a process that closes the lock's file, having read it, gives its lock back."""
    return root / FOLDER / f"{stage}-{key}.owner"


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        raise UserError(
            f"store={root}: its file system has no file locks ({error.strerror}): "
            "mount it with them (Lustre: -o flock; NFS: without nolock), or choose another folder"
        ) from error
