"""A full disk, told from other failures and said in one line."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfcontrast.errors import UserError

# No space, no quota, and a limit on a file's size (ulimit -f).
_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def explained(root: Path, setting: str = "store") -> Iterator[None]:
    """Turns the error of a full or forbidden disk into a `UserError` that names the folder and what to do.

    Args:
        setting: the folder's.
    """
    try:
        yield
    except Exception as error:
        if reason := no_space(error):
            free = ", ".join(
                f"{shutil.disk_usage(place).free / 2**20:,.0f} MiB free in {place}" for place in _disks(root)
            )
            hint = (
                f", for instance with python -m selfcontrast.store prune --store {root}" if setting == "store" else ""
            )
            raise UserError(
                f"{setting}={root}: {reason} ({free}); make room{hint}: the same command then goes on from here"
            ) from error
        if isinstance(error, OSError) and error.errno in _FORBIDDEN and _below(root, error.filename):
            raise UserError(
                f"{setting}={root}: {error.filename}: {error.strerror}; choose a folder that is yours"
            ) from error
        raise


def no_space(error: BaseException) -> str | None:
    """What the system says of a full disk, if that is behind the error."""
    found: BaseException | None = error
    while found:
        if isinstance(found, OSError) and found.errno in _FULL:
            return _FULL[found.errno]
        # Libraries in Rust and C++ give the system's words in an error of their own.
        if said := [text for code, text in _FULL.items() if code != errno.EFBIG and text in str(found)]:
            return said[0]
        if f"(os error {errno.EFBIG})" in str(found):
            return _FULL[errno.EFBIG]
        found = found.__cause__ or found.__context__
    return None


def _disks(root: Path) -> list[Path]:
    """Where a stage writes: the store, and the folder of temporary files (checkpoints go through it)."""
    temporary = Path(tempfile.gettempdir())
    return [root] if root.stat().st_dev == temporary.stat().st_dev else [root, temporary]


def _below(root: Path, name: object) -> bool:
    return isinstance(name, str | os.PathLike) and Path(name).absolute().is_relative_to(root.absolute())
