"""The nodes of one job. Each runs `train.py`; the first decides for all which stages to train.

Start one task per node with `srun`, or by hand with NODE_RANK, MASTER_ADDR and MASTER_PORT set. Stages without training
need no agreement: the node that gets the store's lock computes, and the others read.
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

MAX_WAIT = timedelta(days=30)  # a node may wait for stages that run for days


@dataclass(frozen=True)
class Node:
    """This machine, one of `count` nodes. `port` is for decisions, `port + 1` for the ranks of a training."""

    rank: int
    count: int
    address: str
    port: int


def this_node(count: int) -> Node:
    """Return this machine's node. Raise `UserError` if the environment does not identify it."""
    if count == 1:
        return Node(0, 1, "127.0.0.1", 0)
    if SLURMEnvironment.detect() and "NODE_RANK" not in os.environ:
        try:
            slurm = SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise UserError(
                f"hardware.num_nodes={count}: Slurm's tasks cannot be used ({error}). Use srun --ntasks-per-node=1."
            ) from error
        return Node(slurm.node_rank(), count, slurm.main_address, slurm.main_port)
    try:
        rank, port = int(os.environ["NODE_RANK"]), int(os.environ["MASTER_PORT"])
        return Node(rank, count, os.environ["MASTER_ADDR"], port)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"hardware.num_nodes={count}, but this node's rank is unknown. Start train.py once per node with "
            "srun --ntasks-per-node=1, or set NODE_RANK, MASTER_ADDR and MASTER_PORT on each node."
        ) from error


class Decisions:
    """Decisions of the first node, shared with all others. A single node shares nothing."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._store: TCPStore | None = None
        self._decision_count = 0

    def compute_together(self, name: str, compute: Compute, get: Callable[[Compute], Artifact]) -> Artifact:
        """Return the artifact from `get`. If it is missing, all nodes compute it together.

        Args:
            name: the decision's name, unique in the job.
            compute: writes the artifact's files to a folder that all nodes can reach, and does not publish them.
            get: the store's lookup. It takes a lock, which only one node can hold.
        """
        if self.node.rank > 0:
            if folder := self._receive(name):
                compute(Path(folder))
            return get(compute)

        def publish_and_compute(folder: Path) -> Mapping[str, Any] | None:
            self._publish(name, str(folder))
            return compute(folder)

        artifact = get(publish_and_compute)
        if artifact.cached:
            self._publish(name, "")
        return artifact

    def finish(self) -> None:
        """On the first node, wait until the others have read every decision: this process serves the decisions."""
        for number in range(1, self._decision_count + 1):
            for rank in range(1, self.node.count):
                self._connect().wait([f"{rank} knows {number}"])

    def _publish(self, name: str, decision: str) -> None:
        if self.node.count > 1:
            self._decision_count += 1
            self._connect().set(name, decision)

    def _receive(self, name: str) -> str:
        """Wait for a decision and return it."""
        try:
            decision = str(self._connect().get(name).decode())
            self._decision_count += 1
            self._connect().set(f"{self.node.rank} knows {self._decision_count}", "")
            return decision
        except DistNetworkError as error:
            raise UserError("the first node has ended. See its output for the reason.") from error

    def _connect(self) -> TCPStore:
        if self._store is None:
            node = self.node
            self._store = TCPStore(
                node.address, node.port, is_master=node.rank == 0, wait_for_workers=False, timeout=MAX_WAIT
            )
        return self._store
