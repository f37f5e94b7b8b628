"""The engine for many processes and machines: a Ray Data pipeline whose actors hold the model.

Ray places the actors and gives each one shard at a time. If actors are lost, it replaces them and redistributes their
shards. Tables are not sent: an actor writes a shard's file itself, into a folder that all machines share.
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

# Environment variables for Ray and the processes that it starts. Values that the user has set are kept.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# A cluster on this machine listens on loopback only: the first variable sets this, and its name has the systems where
# it is Ray's default. The cluster requires a token, because other users of the machine can reach loopback too.
PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
# Loggers that repeat the exception, or report that progress bars are off.
REDUNDANT = ("exceptions", "_internal.execution.streaming_executor_state", "_internal.progress")


@dataclass(frozen=True)
class Ray:
    """Actors on an existing cluster, or on a cluster that is started on this machine for the work."""

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
            raise UserError(f"engine.actors={self.actors} must be 1 or more, or [minimum, maximum]")
        for name in ("cpus_per_actor", "gpus_per_actor"):
            fraction = getattr(self, name)
            if fraction is not None and (fraction < 0 or (fraction > 1 and fraction % 1)):
                raise UserError(f"engine.{name}={fraction:g} must be a whole number, or a fraction below 1")
        if self.address not in (None, "auto"):
            raise UserError(
                f"engine.address={self.address} must be null or auto. Ray Data does not support ray://, so start "
                "train.py on a machine of the cluster. If the machine is in several clusters, set RAY_ADDRESS."
            )

    @property
    def _bounds(self) -> list[int]:
        """The minimum and maximum number of actors."""
        return self.actors if isinstance(self.actors, list) else [self.actors, self.actors]

    def check(self) -> None:
        if find_spec("ray") is None:
            raise UserError("engine=ray: Ray is not installed. Run pip install 'ray[data]', or use engine=local.")
        if self.address is not None:
            with self.ready():
                return  # fail now, not after an hour of fine-tuning
        needed, cores = self._bounds[0] * self.cpus_per_actor, os.cpu_count() or 1
        if needed > cores:
            raise UserError(
                f"engine.actors={self.actors}, engine.cpus_per_actor={self.cpus_per_actor:g}: {needed:g} cores "
                f"are needed, but this machine has {cores}. Lower them, or use a cluster with engine.address=auto."
            )

    def run(self, task: Task, shards: Sequence[Shard], device: str, label: str, unit: str) -> None:
        missing = unfinished(shards)
        if not missing:
            return
        for folder in {shard.file.parent for shard in missing}:
            folder.mkdir(parents=True, exist_ok=True)
        with self.ready(), progress(shards, missing, label, unit) as advance:
            for result in self._pipeline(task, missing, device):
                for record in pickle.loads(result["records"]):
                    logging.getLogger(record.name).handle(record)
                if result["error"]:
                    raise UserError(result["error"])
                advance(int(result["weight"]))

    def _pipeline(self, task: Task, missing: Sequence[Shard], device: str) -> Iterator[dict[str, Any]]:
        """Yield the actors' result for each finished shard."""
        import ray.data

        gpus = float(device != "cpu") if self.gpus_per_actor is None else self.gpus_per_actor
        minimum, maximum = self._bounds
        rows = [{"file": str(s.file.absolute()), "items": pickle.dumps(s.items), "weight": s.weight} for s in missing]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*ray_remote_args")  # they are the only way to set max_restarts so far
            results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                Actor,
                fn_constructor_args=(task, "cuda" if gpus else "cpu", Path.cwd()),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=minimum, max_size=maximum),
                num_cpus=self.cpus_per_actor,
                num_gpus=gpus,
                max_restarts=self.restarts,  # not max_task_retries, which a lost machine uses up within seconds
            )
        results.context.enable_progress_bars = False
        results.context.print_on_execution_start = False
        results.context.execution_no_progress_timeout_s = -1  # a shard may take any time
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        for part in REDUNDANT:
            logging.getLogger(f"ray.data.{part}").setLevel(logging.CRITICAL)
        try:
            yield from results.iter_rows()
        except ray.exceptions.RayActorError as error:
            raise UserError(
                f"engine=ray: an actor was lost more than engine.restarts={self.restarts} times, "
                "often for lack of memory. Use fewer actors or smaller batches."
            ) from error

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Connect to Ray. Disconnect at the end; stop the cluster if this call started it."""
        for name, value in {**QUIET, **(PRIVATE if self.address is None else {})}.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            yield
            return
        with ExitStack() as stack:
            local: dict[str, Any] = {}
            if self.address is None:
                folder = tempfile.TemporaryDirectory(prefix="ray-", dir=os.environ.get("RAY_TMPDIR"))
                local = {"include_dashboard": False, "_temp_dir": stack.enter_context(folder)}
            stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            stack.callback(ray.shutdown)
            try:
                ray.init(self.address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
            except (OSError, RuntimeError, ValueError) as error:
                fix = "Use engine=local." if self.address is None else "Run ray start --head, or use null."
                address = self.address or "null"
                raise UserError(f"engine.address={address}: Ray does not start ({error}). {fix}") from error
            # Ray's own handler prints the stacks of its threads.
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
            yield


class Actor:
    """A Ray actor, which opens the model for its first shard. Ray Data creates one actor per worker process."""

    def __init__(self, task: Task, device: str, folder: Path) -> None:
        self.task, self.device, self.folder = task, device, folder
        self.resources = ExitStack()
        self.work: Worker | None = None
        self.records: SimpleQueue[logging.LogRecord] = SimpleQueue()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the one shard of a batch. Return user errors and log records."""
        error = ""
        try:
            self.write(Path(str(batch["file"][0])), batch["items"][0])
        except UserError as user_error:
            error = str(user_error)
        records = [self.records.get() for _ in range(self.records.qsize())]
        return {"weight": batch["weight"], "error": np.array([error]), "records": [pickle.dumps(records)]}

    def write(self, file: Path, items: bytes) -> None:
        for folder in (self.folder, file.parent):
            if not folder.is_dir():
                raise UserError(
                    f"engine=ray: {folder} does not exist on {socket.gethostname()}. "
                    "All machines must share the store and the folder that train.py is started in."
                )
        if file.exists():  # an earlier actor wrote the file and was then lost
            return
        if self.work is None:
            logging.getLogger().addHandler(QueueHandler(self.records))
            os.chdir(self.folder)  # for relative paths
            self.work = self.resources.enter_context(self.task.open(self.device))
        write_table(file, self.work(pickle.loads(items)))

    def __del__(self) -> None:
        self.resources.close()
