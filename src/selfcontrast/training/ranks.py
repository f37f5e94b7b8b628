"""Train on several devices, with one process per device.

Lightning's own launcher would run the whole command once per device, and the copies would wait for the store's lock
that this process holds. The policy's weights go to the ranks and back through shared memory.
"""

import copy
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, multiprocessing, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from selfcontrast.errors import UserError
from selfcontrast.training.nodes import Node
from selfcontrast.training.sharding import skeleton
from selfcontrast.training.signals import DeferredSignals

Train = Callable[[Any, Any, Path, str], Mapping[str, Tensor]]
"""A function that trains a module on its data in a working folder, for a stage, and returns the weights.

If they are sharded, only the first rank gets them."""

START = "spawn"  # how ranks are started; they inherit this process's current environment
GRACE = 5  # seconds for the other ranks to end after the first one has ended


@dataclass(frozen=True)
class RankWork:
    """The work of every rank: a module, its data, a working folder and the stage's name."""

    train: Train
    module: Any
    data: Any
    folder: Path
    stage: str


@dataclass(frozen=True)
class Ranks:
    """All processes of a training stage; `local` of them run on this node."""

    node: Node
    local: int
    seed: int

    def run(self, train: Train, module: Any, data: Any, folder: Path, stage: str) -> None:
        """Train `module.policy` and fill `module.history`. New records go to `module.report` at once.

        Raises:
            UserError: if a rank fails; a rank's own `UserError` is passed on.
        """
        report, module.report = module.report, None  # not sent to the ranks: it may be impossible to pickle
        messages = multiprocessing.get_context(START).SimpleQueue()
        port = self.node.port + 1 if self.node.count > 1 else _free_port()
        work = (self, port, RankWork(train, module, data, folder, stage), messages)
        ranks: Any = start_processes(_rank, work, self.local, join=False, start_method=START)  # type: ignore[no-untyped-call]
        receiver = _Receiver(module, report)

        def forward_signal(number: int) -> None:
            for process in ranks.processes:
                process.terminate()

        try:
            with DeferredSignals(forward_signal) as signals:
                try:
                    while not ranks.join(timeout=0.1, grace_period=GRACE):
                        receiver.drain(messages)
                except (ProcessExitedException, ProcessRaisedException) as error:
                    receiver.drain(messages)
                    if signals.received is None:
                        message = f"{stage}: a rank failed ({error}). See its output above, then run the command again."
                        raise UserError(receiver.error or message) from error
                receiver.drain(messages)
            signals.deliver()
        finally:
            module.report = report
            for process in ranks.processes:
                process.kill()


class _Receiver:
    def __init__(self, module: Any, report: Callable[[Any], None]) -> None:
        self.module = module
        self.report = report
        self.error: str | None = None

    def drain(self, messages: Any) -> None:
        while not messages.empty():
            kind, content = messages.get()
            if kind == "record":
                self.report(content)
            elif kind == "history":
                self.module.history = content
            elif self.error is None:
                self.error = content


def _rank(local: int, ranks: Ranks, port: int, work: RankWork, messages: Any) -> None:
    module = work.module
    node, count = ranks.node, ranks.node.count * ranks.local
    rank = node.rank * ranks.local + local
    os.environ |= {
        "MASTER_ADDR": node.address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(ranks.local),
        "GROUP_RANK": str(node.rank),
    }
    lightning.seed_everything(ranks.seed + rank, verbose=False)  # each rank draws its own dropout
    module.report = (lambda record: messages.put(("record", record))) if rank == 0 else (lambda record: None)
    shared_policy: nn.Module = module.policy
    if work.data.hardware.strategy == "fsdp2":  # this rank holds only a shard of the weights
        module.policy, module.weights = skeleton(shared_policy), shared_policy.state_dict()
    else:
        module.policy = copy.deepcopy(shared_policy)
    try:
        weights = work.train(module, work.data, work.folder, work.stage)
    except UserError as error:
        messages.put(("error", str(error)))
        sys.exit(1)
    if local == 0 and node.rank == 0:
        with torch.no_grad():
            for name, value in shared_policy.state_dict().items():
                value.copy_(weights[name])
        messages.put(("history", module.history))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
