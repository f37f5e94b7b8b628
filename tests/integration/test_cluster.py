"""Run a job as a cluster does: on several nodes, and close to its time limit."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from test_kill import published

from jobs import TIMEOUT, TINY, Finished, read_result, start_train, stopped_job


@pytest.mark.slow
def test_job_on_two_nodes_has_the_losses_of_one_node(finished: Finished, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    nodes = [
        start_train(
            *TINY,
            "hardware.num_nodes=2",
            cwd=tmp_path,
            env={"NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in (0, 1)
    ]
    try:
        (_, error), (_, other_error) = (node.communicate(timeout=2 * TIMEOUT) for node in nodes)
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
    assert [node.returncode for node in nodes] == [0, 0], error + other_error
    result = read_result(tmp_path / "out")
    for stage in ("sft", "align"):
        losses, one_node_losses = (
            [r["loss"] for r in job["histories"][stage] if "loss" in r] for job in (result, finished.result)
        )
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(one_node_losses), atol=1e-4, rtol=1e-3)


def test_time_limit_signal_saves_the_step_and_requeues_the_job(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/scontrol-args\n')
    (tools / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "PATH": f"{tools}:{os.environ['PATH']}"}
    settings = [*TINY, "sft.epochs=500", "hardware.checkpoint_every=20"]
    with stopped_job(tmp_path, settings, "sft/*.partial/resume/last.ckpt", slurm) as job:
        job.send_signal(signal.SIGUSR1)
        job.send_signal(signal.SIGCONT)
        _, error = job.communicate(timeout=TIMEOUT)
    assert job.returncode == 143, error
    assert (tmp_path / "scontrol-args").read_text() == "requeue 4711\n"
    assert error.strip().splitlines()[-1].startswith("requeued: ")
    assert "sft" not in published(tmp_path)
    assert "sft: saved after step 21 of " in error
    (saved,) = (tmp_path / "store").glob("sft/*.partial/resume/last.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 21  # one step after the job was stopped
