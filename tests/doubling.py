"""Define a task for engines that needs no model. It doubles numbers; some numbers make its worker fail."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from selfcontrast.engines.work import Shard, Worker
from selfcontrast.errors import UserError


@dataclass(frozen=True)
class Doubling:
    """Double numbers, and write empty files to `folder` that show what happened.

    Each worker writes `PROCESS-DEVICE.opened`. At the number 15, a worker writes `waiting` and waits for a signal. At
    the number 16, the first worker writes `lost`, and kills Ray on this machine and itself.
    """

    folder: Path

    @contextmanager
    def open(self, device: str) -> Iterator[Worker]:
        (self.folder / f"{os.getpid()}-{device}.opened").touch()
        yield self.double

    def double(self, items: Sequence[int]) -> pa.Table:
        if 11 in items:
            logging.getLogger("selfcontrast.test").warning("%d is odd", 11)
        if 13 in items:
            raise UserError("number=13: give an even number")
        if 14 in items:
            os.kill(os.getpid(), signal.SIGKILL)
        if 15 in items:
            (self.folder / "waiting").touch()
            signal.pause()
        if 16 in items and not (self.folder / "lost").exists():
            (self.folder / "lost").touch()
            for process in (os.getppid(), os.getpid()):  # first Ray on this machine, then this worker
                os.kill(process, signal.SIGKILL)
        return pa.table({"double": [2 * item for item in items]})


def shards(folder: Path, *items: list[int]) -> list[Shard]:
    return [Shard(folder / f"{i}.parquet", part, len(part)) for i, part in enumerate(items)]
