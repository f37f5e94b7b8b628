import errno
import multiprocessing
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from selfcontrast.errors import UserError
from selfcontrast.store.locks import Owner, all_locks, in_progress, locked, locked_if_free, owner, remove

KEY = "0123456789abcdef0123"

fork = multiprocessing.get_context("fork")


def test_owner_is_recorded_during_work_and_after_failure(tmp_path: Path) -> None:
    with locked(tmp_path, "a-stage", KEY):
        holder = owner(tmp_path, "a-stage", KEY)
        assert holder
        assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
        assert re.fullmatch(rf"{re.escape(holder.host)}:{holder.pid} since \d\d:\d\d", str(holder))
    assert owner(tmp_path, "a-stage", KEY) is None
    with pytest.raises(RuntimeError), locked(tmp_path, "a-stage", KEY):
        raise RuntimeError
    abandoned = owner(tmp_path, "a-stage", KEY)
    assert abandoned
    assert abandoned.pid == os.getpid()


def test_owner_of_earlier_day_is_printed_with_date() -> None:
    assert str(Owner("host", 7, "2024-03-31T12:00:00+00:00")).startswith("host:7 since 2024-03-31 ")


def test_locked_if_free_does_not_wait(tmp_path: Path) -> None:
    assert not in_progress(tmp_path, "stage", KEY)
    assert not (tmp_path / "locks").exists()  # `in_progress` creates no lock
    with locked(tmp_path, "stage", KEY):
        assert in_progress(tmp_path, "stage", KEY)
        with locked_if_free(tmp_path, "stage", KEY) as free:
            assert not free
    assert not in_progress(tmp_path, "stage", KEY)
    assert all_locks(tmp_path) == [("stage", KEY)]


def _wait_and_hold_lock(root: Path, waits: Any, entered: Any, leave: Any) -> None:
    waits.set()
    with locked(root, "stage", KEY):
        entered.set()
        leave.wait(60)


def test_lock_removed_while_a_process_waits_still_excludes(tmp_path: Path) -> None:
    """The waiting process must not end up with a lock on the deleted file."""
    waits, entered, leave = fork.Event(), fork.Event(), fork.Event()
    waiting = fork.Process(target=_wait_and_hold_lock, args=(tmp_path, waits, entered, leave))
    with locked_if_free(tmp_path, "stage", KEY) as free:
        assert free
        waiting.start()
        assert waits.wait(60)
        time.sleep(0.1)  # the waiting process has most likely opened the lock's file by then
        remove(tmp_path, "stage", KEY)
        assert not all_locks(tmp_path)
    assert entered.wait(60)
    assert in_progress(tmp_path, "stage", KEY)
    leave.set()
    waiting.join(60)
    assert waiting.exitcode == 0


def test_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FileLock, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    with pytest.raises(UserError, match=r"no file locks .*-o flock"), locked(tmp_path, "stage", KEY):
        pass
