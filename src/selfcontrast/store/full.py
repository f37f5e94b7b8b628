"""Report a full or forbidden disk in one line."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfcontrast.errors import UserError

# No space, no quota, or a limit on file sizes (ulimit -f).
_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def explain_disk_errors(root: Path, setting: str = "store") -> Iterator[None]:
    """Turn the error of a full or forbidden disk into a `UserError` that names the folder and the fix.

    Args:
        setting: the setting that names the folder.
    """
    try:
        yield
    except Exception as error:
        if reason := no_space(error):
            free = ", ".join(f"{shutil.disk_usage(disk).free / 2**20:,.0f} MiB free in {disk}" for disk in _disks(root))
            hint = f", for instance with `selfcontrast store prune --store {root}`" if setting == "store" else ""
            raise UserError(
                f"{setting}={root}: {reason} ({free}). Free some space{hint}, then run the same command to continue."
            ) from error
        if isinstance(error, OSError) and error.errno in _FORBIDDEN and _below(root, error.filename):
            raise UserError(
                f"{setting}={root}: {error.filename}: {error.strerror}. Choose a folder that you may write to."
            ) from error
        raise


def no_space(error: BaseException) -> str | None:
    """Return the system's message for a full disk, if a full disk caused the error; else None."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return _FULL[cause.errno]
        # Libraries in Rust and C++ put the system's message into errors of their own.
        if messages := [text for code, text in _FULL.items() if code != errno.EFBIG and text in str(cause)]:
            return messages[0]
        if f"(os error {errno.EFBIG})" in str(cause):
            return _FULL[errno.EFBIG]
        cause = cause.__cause__ or cause.__context__
    return None


def _disks(root: Path) -> list[Path]:
    """Return a folder on each disk that a stage writes to: the store, and temporary files (checkpoints)."""
    temporary = Path(tempfile.gettempdir())
    return [root] if root.stat().st_dev == temporary.stat().st_dev else [root, temporary]


def _below(root: Path, name: object) -> bool:
    return isinstance(name, str | os.PathLike) and Path(name).absolute().is_relative_to(root.absolute())
