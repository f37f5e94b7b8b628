"""Work in shards. Each shard's result is a file that is written atomically, so finished work is never repeated.

A *task* defines how a shard's items become a table; an *engine* decides where it runs. The engine never changes the
result.
"""

import hashlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
from tqdm import tqdm

from selfcontrast.errors import UserError
from selfcontrast.progress import count, finish
from selfcontrast.store.sealed import Damaged, check_sealed, read_sealed, write_sealed

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Worker = Callable[[Sequence[Any]], pa.Table]


@dataclass(frozen=True)
class Shard:
    """Items to process together, and the Parquet file of the result. `weight` is their size on the progress bar."""

    file: Path
    items: Sequence[Any]
    weight: int


def cut(items: Sequence[Item], size: int, folder: Path, name: Callable[[Item], str], weight: int = 1) -> list[Shard]:
    """Split items into shards of `size` neighbours.

    Shard files are named by a hash of their items, so a new shard size never reuses the wrong file.

    Args:
        name: returns an item's unique name.
        weight: weight of one item.
    """
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    digests = (hashlib.sha256("\0".join(map(name, part)).encode()).hexdigest()[:20] for part in parts)
    return [
        Shard(folder / f"{digest}.parquet", part, len(part) * weight)
        for digest, part in zip(digests, parts, strict=True)
    ]


class Task(Protocol):
    """The work on a shard. An engine may send it and the items to another process, so both must be picklable."""

    def open(self, device: str) -> AbstractContextManager[Worker]:
        """Load expensive resources once for many shards, and free them at the end."""


class Engine(Protocol):
    """An interface for running tasks."""

    @property
    def prompts_per_shard(self) -> int: ...

    @property
    def texts_per_shard(self) -> int: ...

    def check(self) -> None:
        """Raise `UserError` for errors that can be found before any compute."""

    def ready(self) -> AbstractContextManager[None]:
        """Start costly services once for several runs."""

    def run(self, task: Task, shards: Sequence[Shard], device: str, label: str, unit: str) -> None:
        """Write the file of every unfinished shard, with a progress bar of this label."""


def unfinished(shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards without a file. A damaged file is logged and deleted, and counts as missing.

    Folders are listed instead of testing files, because a network file system may cache that a file does not exist.
    """
    files = {file for folder in {shard.file.parent for shard in shards} for file in folder.glob("*")}
    for shard in shards:
        if shard.file in files and (damage := check_sealed(shard.file)):
            log.warning("%s; computing it again", damage)
            shard.file.unlink(missing_ok=True)
            files.remove(shard.file)
    return [shard for shard in shards if shard.file not in files]


@contextmanager
def progress(
    shards: Sequence[Shard], missing: Sequence[Shard], label: str, unit: str
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the weight of each finished shard.

    The bar shows the work of an earlier attempt as done, but the rate does not include it.
    """
    total, remaining = sum(s.weight for s in shards), sum(s.weight for s in missing)
    with tqdm(total=total, initial=total - remaining, desc=label, unit=unit, disable=None) as bar:
        yield count(total, unit, total - remaining, lambda done: bar.update(done - bar.n)).advance
    finish()


def write_table(file: Path, table: pa.Table) -> None:
    """Write a shard's file atomically, with its checksum. An existing file is always complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(file, file.with_suffix(f".{socket.gethostname()}.{os.getpid()}.writing"), table)


def read_table(file: Path, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read a shard's file. Raise `UserError` if it was damaged after the engine had finished it."""
    try:
        return read_sealed(file, columns, schema)
    except Damaged as damage:
        raise UserError(f"{damage}. Run the same command again to recompute it.") from damage
