"""Test the nodes of a job: their rank, and how they compute missing artifacts together."""

import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.errors import UserError
from selfcontrast.store import Artifact, Stage, Store
from selfcontrast.training.nodes import Compute, Decisions, Node, this_node


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_this_node_single_needs_no_environment() -> None:
    assert this_node(1).rank == 0


def test_this_node_reads_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"hardware\.num_nodes=2.*NODE_RANK"):
        this_node(2)
    for name, value in {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert this_node(2) == Node(1, 2, "10.0.0.1", 29500)


def test_this_node_reads_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {
        "NTASKS": "2",
        "NTASKS_PER_NODE": "1",
        "JOB_NAME": "paper",
        "NODEID": "1",
        "NODELIST": "gpu[07-08]",
        "JOB_ID": "12345",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    node = this_node(2)
    assert (node.rank, node.count, node.address) == (1, 2, "gpu07")
    assert node.port == 15000 + 2345  # from the job id, so that two jobs on one machine use different ports
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="ntasks-per-node"):
        this_node(2)


def test_decisions_two_nodes_compute_together_and_one_publishes(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    barrier = threading.Barrier(2, timeout=30)
    artifacts_by_rank: dict[int, list[Artifact]] = {0: [], 1: []}

    def node(rank: int) -> None:
        decisions = Decisions(Node(rank, 2, "127.0.0.1", port))

        def compute(folder: Path) -> Mapping[str, Any] | None:
            barrier.wait()  # returns only if both nodes compute
            if rank == 0:
                (folder / "model").write_text("weights")
            barrier.wait()
            return {"by": rank}

        def get(computed: Compute) -> Artifact:
            return Store(tmp_path).get(Stage("sft", 1, {}, {}, computed))

        artifacts_by_rank[rank] += [decisions.compute_together(name, compute, get) for name in ("computed", "cached")]
        if rank == 0:
            decisions.finish()

    threads = [threading.Thread(target=node, args=[rank]) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [[a.cached for a in artifacts_by_rank[rank]] for rank in (0, 1)] == [[False, True], [True, True]]
    assert {a.key for artifacts in artifacts_by_rank.values() for a in artifacts} == {artifacts_by_rank[0][0].key}
    assert artifacts_by_rank[1][0].summary == {"by": 0}
