"""The engine of many processes and machines: a Ray Data pipeline whose actors hold the model.

Ray places the actors, gives each one shard after another, and replaces an actor that is lost, whose shards are given
out again. Tables do not travel: an actor writes a shard's file itself, into a folder that all machines share.
"""

import logging
import os
import pickle
import secrets
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from selfcontrast.constrained import Count, NonNegative, Text, Tries, Workers, check_numbers
from selfcontrast.engines.work import Shard, Task, Worker, progress, unfinished, write_table
from selfcontrast.errors import UserError
from selfcontrast.store import NOT_IN_KEY

# Read by Ray when it is imported, and by the processes that it starts. What a user has set stays.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# A cluster of this machine alone listens on loopback alone (named for the systems where that is Ray's default), and
# knows its own by a token, as other users of the machine reach loopback too.
PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
# Loggers that say what the exception says, or that there are no bars.
REDUNDANT = ("exceptions", "_internal.execution.streaming_executor_state", "_internal.progress")


@dataclass(frozen=True)
class Ray:
    """Actors on a cluster that exists, or on one of this machine that lives as long as the work."""

    prompts_per_shard: Count = field(metadata=NOT_IN_KEY)
    texts_per_shard: Count = field(metadata=NOT_IN_KEY)
    actors: Workers | list[Workers] = field(metadata=NOT_IN_KEY)
    cpus_per_actor: NonNegative = field(metadata=NOT_IN_KEY)
    gpus_per_actor: NonNegative | None = field(metadata=NOT_IN_KEY)
    restarts: Tries = field(metadata=NOT_IN_KEY)
    address: Text | None = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "engine")
        bounds = self._bounds
        if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
            raise UserError(f"engine.actors={self.actors}: 1 or more, or [least, most]")
        for name in ("cpus_per_actor", "gpus_per_actor"):
            share = getattr(self, name)
            if share is not None and (share < 0 or (share > 1 and share % 1)):
                raise UserError(f"engine.{name}={share:g}: a whole number, or a share of one")
        if self.address not in (None, "auto"):
            raise UserError(
                f"engine.address={self.address}: null or auto; Ray Data is not made for ray://, so start train.py on a "
                "machine of the cluster; where a machine is in several, RAY_ADDRESS chooses"
            )

    @property
    def _bounds(self) -> list[int]:
        """The least and the most actors."""
        return self.actors if isinstance(self.actors, list) else [self.actors, self.actors]

    def check(self) -> None:
        if find_spec("ray") is None:
            raise UserError("engine=ray: Ray is not installed: pip install 'ray[data]', or take engine=local")
        if self.address is not None:
            with self.ready():
                return  # known now, and not after an hour of fine-tuning
        needed, cores = self._bounds[0] * self.cpus_per_actor, os.cpu_count() or 1
        if needed > cores:
            raise UserError(
                f"engine.actors={self.actors}, engine.cpus_per_actor={self.cpus_per_actor:g}: {needed:g} cores of "
                f"{cores} here; take fewer, or a cluster's engine.address"
            )

    def run(self, task: Task, shards: Sequence[Shard], device: str, label: str, unit: str) -> None:
        todo = unfinished(shards)
        if not todo:
            return
        for folder in {shard.file.parent for shard in todo}:
            folder.mkdir(parents=True, exist_ok=True)
        with self.ready(), progress(shards, todo, label, unit) as more:
            for done in self._pipeline(task, todo, device):
                for record in pickle.loads(done["records"]):
                    logging.getLogger(record.name).handle(record)
                if done["error"]:
                    raise UserError(done["error"])
                more(int(done["weight"]))

    def _pipeline(self, task: Task, todo: Sequence[Shard], device: str) -> Iterator[dict[str, Any]]:
        """What the actors return of each shard, as it is finished."""
        import ray.data

        gpus = float(device != "cpu") if self.gpus_per_actor is None else self.gpus_per_actor
        least, most = self._bounds
        rows = [{"file": str(s.file.absolute()), "items": pickle.dumps(s.items), "weight": s.weight} for s in todo]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*ray_remote_args")  # the only way to max_restarts so far
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                Actor,
                fn_constructor_args=(task, "cuda" if gpus else "cpu", Path.cwd()),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
                num_cpus=self.cpus_per_actor,
                num_gpus=gpus,
                max_restarts=self.restarts,  # not max_task_retries: a lost machine uses those up within seconds
            )
        done.context.enable_progress_bars = False
        done.context.print_on_execution_start = False
        done.context.execution_no_progress_timeout_s = -1  # a shard takes as long as it takes
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        for part in REDUNDANT:
            logging.getLogger(f"ray.data.{part}").setLevel(logging.CRITICAL)
        try:
            yield from done.iter_rows()
        except ray.exceptions.RayActorError as error:
            raise UserError(
                f"engine=ray: a worker was lost more than engine.restarts={self.restarts} times; "
                "often that is too little memory: fewer actors, or smaller batches"
            ) from error

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Connected to Ray; what was connected or started here is gone afterwards."""
        for name, value in {**QUIET, **(PRIVATE if self.address is None else {})}.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            yield
            return
        with ExitStack() as stack:
            own: dict[str, Any] = {}
            if self.address is None:
                folder = tempfile.TemporaryDirectory(prefix="ray-", dir=os.environ.get("RAY_TMPDIR"))
                own = {"include_dashboard": False, "_temp_dir": stack.enter_context(folder)}
            stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            stack.callback(ray.shutdown)
            try:
                ray.init(self.address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(f"engine.address={self.address or 'null'}: {error}") from error
            # Ray's own handler writes the stack of its threads.
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
            yield


class Actor:
    """A worker, opened when the first shard comes. Ray Data makes one in each of its processes."""

    def __init__(self, task: Task, device: str, folder: Path) -> None:
        self.task, self.device, self.folder = task, device, folder
        self.opened = ExitStack()
        self.work: Worker | None = None
        self.records: SimpleQueue[logging.LogRecord] = SimpleQueue()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Writes the one shard of a batch. What a user can mend, or should read, is returned."""
        error = ""
        try:
            self.write(Path(str(batch["file"][0])), batch["items"][0])
        except UserError as mendable:
            error = str(mendable)
        records = [self.records.get() for _ in range(self.records.qsize())]
        return {"weight": batch["weight"], "error": np.array([error]), "records": [pickle.dumps(records)]}

    def write(self, file: Path, items: bytes) -> None:
        for folder in (self.folder, file.parent):
            if not folder.is_dir():
                raise UserError(
                    f"engine=ray: there is no {folder} on {socket.gethostname()}: "
                    "all machines must share the store and the folder that train.py is started in"
                )
        if file.exists():  # its worker was lost before it could say so
            return
        if self.work is None:
            logging.getLogger().addHandler(QueueHandler(self.records))
            os.chdir(self.folder)  # where relative paths begin
            self.work = self.opened.enter_context(self.task.open(self.device))
        write_table(file, self.work(pickle.loads(items)))

    def __del__(self) -> None:
        self.opened.close()
