"""A training on several devices: one process each, started here.

Lightning's own launcher would run the user's whole command once more per device, and those copies would wait for the
store's lock that this process holds. The policy's weights travel through shared memory, there and back.
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
from selfcontrast.training.signals import Postponed

Train = Callable[[Any, Any, Path, str], Mapping[str, Tensor]]
"""Trains a module on its data, in a working folder, for a stage; gives the trained weights, on the first rank."""

START = "spawn"  # how a rank is started: with the environment that this process has now
GRACE = 5  # seconds for the other ranks to end, once one has


@dataclass(frozen=True)
class RankWork:
    """What every process trains: a module on its data, in a working folder, for a stage."""

    train: Train
    module: Any
    data: Any
    folder: Path
    stage: str


@dataclass(frozen=True)
class Ranks:
    """All of a training's processes: `local` on this node."""

    node: Node
    local: int
    seed: int

    def run(self, train: Train, module: Any, data: Any, folder: Path, stage: str) -> None:
        """Trains `module.policy` and fills `module.history`; records reach `module.report` as they are made.

        Raises:
            UserError: a rank's own.
        """
        report, module.report = module.report, None  # stays here, whatever it holds on to
        messages = multiprocessing.get_context(START).SimpleQueue()
        port = self.node.port + 1 if self.node.count > 1 else _free_port()
        work = (self, port, RankWork(train, module, data, folder, stage), messages)
        ranks: Any = start_processes(_rank, work, self.local, join=False, start_method=START)  # type: ignore[no-untyped-call]
        receive = _Receiver(module, report)

        def pass_on(number: int) -> None:
            for process in ranks.processes:
                process.terminate()

        try:
            with Postponed(pass_on) as signals:
                try:
                    while not ranks.join(timeout=0.1, grace_period=GRACE):
                        receive.all(messages)
                except (ProcessExitedException, ProcessRaisedException) as error:
                    receive.all(messages)
                    if signals.noted is None:
                        raise UserError(receive.error or f"{stage}: a rank failed: {error}") from error
                receive.all(messages)
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

    def all(self, messages: Any) -> None:
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
    lightning.seed_everything(ranks.seed + rank, verbose=False)  # no two ranks draw the same dropout
    module.report = (lambda record: messages.put(("record", record))) if rank == 0 else (lambda record: None)
    shared: nn.Module = module.policy
    if work.data.hardware.strategy == "fsdp2":  # a shard of the weights is all that this process will hold
        module.policy, module.weights = skeleton(shared), shared.state_dict()
    else:
        module.policy = copy.deepcopy(shared)
    try:
        weights = work.train(module, work.data, work.folder, work.stage)
    except UserError as error:
        messages.put(("error", str(error)))
        sys.exit(1)
    if local == 0 and node.rank == 0:
        with torch.no_grad():
            for name, value in shared.state_dict().items():
                value.copy_(weights[name])
        messages.put(("history", module.history))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
