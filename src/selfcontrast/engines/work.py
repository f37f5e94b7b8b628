"""Work in shards: each becomes a file that is written whole, so that what is done is never done again.

A *task* says how a shard's items become a table; an *engine* says where. Neither changes what comes out.
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
    """Items to be worked on together, and the Parquet file that the result goes to. `weight` is for the bar."""

    file: Path
    items: Sequence[Any]
    weight: int


def cut(items: Sequence[Item], size: int, folder: Path, name: Callable[[Item], str], weight: int = 1) -> list[Shard]:
    """Neighbours together, `size` to a shard. A file is named after what it holds: no other size takes it for its own.

    Args:
        name: what tells an item from all others.
        weight: of one item.
    """
    parts = [items[i : i + size] for i in range(0, len(items), size)]
    digests = (hashlib.sha256("\0".join(map(name, part)).encode()).hexdigest()[:20] for part in parts)
    return [
        Shard(folder / f"{digest}.parquet", part, len(part) * weight)
        for digest, part in zip(digests, parts, strict=True)
    ]


class Task(Protocol):
    """What is done with a shard. It and the items can be pickled: an engine may send them to another process."""

    def open(self, device: str) -> AbstractContextManager[Worker]:
        """Loads what is expensive, once for many shards, and gives it back at the end."""


class Engine(Protocol):
    """Where tasks run."""

    @property
    def prompts_per_shard(self) -> int: ...

    @property
    def texts_per_shard(self) -> int: ...

    def check(self) -> None:
        """Raises `UserError` for what can be known before any compute."""

    def ready(self) -> AbstractContextManager[None]:
        """Around several runs: what is costly to start is started once."""

    def run(self, task: Task, shards: Sequence[Shard], device: str, label: str, unit: str) -> None:
        """Writes the file of every shard that has none yet, with a progress bar of this label."""


def unfinished(shards: Sequence[Shard]) -> list[Shard]:
    """The shards that have no file, or a damaged one, which is reported and deleted.

    Folders are listed, as a network file system remembers what it said was missing.
    """
    there = {file for folder in {shard.file.parent for shard in shards} for file in folder.glob("*")}
    for shard in shards:
        if shard.file in there and (damage := check_sealed(shard.file)):
            log.warning("%s; computing it again", damage)
            shard.file.unlink(missing_ok=True)
            there.remove(shard.file)
    return [shard for shard in shards if shard.file not in there]


@contextmanager
def progress(shards: Sequence[Shard], todo: Sequence[Shard], label: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A function that is told what more is done. What an earlier attempt did counts from the start, and in no rate."""
    every, left = sum(s.weight for s in shards), sum(s.weight for s in todo)
    counted = count(every, unit, every - left)
    with tqdm(total=every, initial=every - left, desc=label, unit=unit, disable=None) as bar:

        def more(weight: int) -> None:
            counted.done += weight
            bar.update(weight)

        yield more
    finish()


def write_table(file: Path, table: pa.Table) -> None:
    """Write a shard's file atomically, with its checksum: a file that exists is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(file, file.with_suffix(f".{socket.gethostname()}.{os.getpid()}.writing"), table)


def read_table(file: Path, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read a shard's file. Raises `UserError` if it has been damaged since the engine finished it."""
    try:
        return read_sealed(file, columns, schema)
    except Damaged as damage:
        raise UserError(f"{damage}; run the same command again, which computes it again") from damage
