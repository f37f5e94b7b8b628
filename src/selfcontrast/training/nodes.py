"""The machines of one job. Each runs `train.py`; what is to be trained, the first decides for all.

Started by `srun` with one task per node, or by hand with NODE_RANK, MASTER_ADDR and MASTER_PORT set. Stages that are
not trained need no agreement: whoever gets the store's lock computes, the others read.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch.distributed import DistNetworkError, TCPStore  # type: ignore[attr-defined]

from selfcontrast.errors import UserError
from selfcontrast.store import Artifact, Compute

PATIENCE = timedelta(days=30)  # a node may wait for stages that run for days


@dataclass(frozen=True)
class Node:
    """This machine among `count`. `port` is for decisions, the one after it for the ranks of a training."""

    rank: int
    count: int
    address: str
    port: int


def this_node(count: int) -> Node:
    """Raises `UserError` where the environment does not say which of `count` nodes this is."""
    if count == 1:
        return Node(0, 1, "127.0.0.1", 0)
    if SLURMEnvironment.detect() and "NODE_RANK" not in os.environ:
        try:
            slurm = SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise UserError(f"hardware.num_nodes={count}: {error}") from error
        return Node(slurm.node_rank(), count, slurm.main_address, slurm.main_port)
    try:
        rank, port = int(os.environ["NODE_RANK"]), int(os.environ["MASTER_PORT"])
        return Node(rank, count, os.environ["MASTER_ADDR"], port)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"hardware.num_nodes={count}: start train.py once per node, by srun --ntasks-per-node=1, "
            "or with NODE_RANK, MASTER_ADDR and MASTER_PORT set on each"
        ) from error


class Decisions:
    """What the first node decides, for all to know. On a single node nobody asks."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._store: TCPStore | None = None
        self._told_so_far = 0

    def together(self, name: str, compute: Compute, get: Callable[[Compute], Artifact]) -> Artifact:
        """The artifact that `get` finds or computes: where it is not there yet, all nodes compute it together.

        Args:
            name: of this decision, once per job.
            compute: works in the folder it is given, which all nodes can reach; publishes nothing.
            get: the store's, with the lock that only one node can hold.
        """
        if self.node.rank > 0:
            if folder := self._told(name):
                compute(Path(folder))
            return get(compute)

        def announced(folder: Path) -> Mapping[str, Any] | None:
            self._tell(name, str(folder))
            return compute(folder)

        artifact = get(announced)
        if artifact.cached:
            self._tell(name, "")
        return artifact

    def finish(self) -> None:
        """On the first node: waits until the others know every decision, which they ask this process for."""
        for number in range(1, self._told_so_far + 1):
            for rank in range(1, self.node.count):
                self._connected().wait([f"{rank} knows {number}"])

    def _tell(self, name: str, decision: str) -> None:
        if self.node.count > 1:
            self._told_so_far += 1
            self._connected().set(name, decision)

    def _told(self, name: str) -> str:
        """Waits for it."""
        try:
            decision = str(self._connected().get(name).decode())
            self._told_so_far += 1
            self._connected().set(f"{self.node.rank} knows {self._told_so_far}", "")
            return decision
        except DistNetworkError as error:
            raise UserError("the first node has ended: its own output says why") from error

    def _connected(self) -> TCPStore:
        if self._store is None:
            node = self.node
            self._store = TCPStore(
                node.address, node.port, is_master=node.rank == 0, wait_for_workers=False, timeout=PATIENCE
            )
        return self._store
