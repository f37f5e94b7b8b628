"""Jobs on a cluster: several nodes, and a time limit that is near."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from test_kill import published

from jobs import TIMEOUT, TINY, Finished, read_result, standing, start_train


@pytest.mark.slow
def test_two_nodes_give_what_one_gives(finished: Finished, tmp_path: Path) -> None:
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
        (_, said), (_, also_said) = (node.communicate(timeout=2 * TIMEOUT) for node in nodes)
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
    assert [node.returncode for node in nodes] == [0, 0], said + also_said
    result = read_result(tmp_path / "out")
    for stage in ("sft", "align"):
        losses, alone = (
            [r["loss"] for r in job["histories"][stage] if "loss" in r] for job in (result, finished.result)
        )
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(alone), atol=1e-4, rtol=1e-3)


def test_a_time_limit_that_is_near_saves_the_step_and_requeues_the_job(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tools / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "PATH": f"{tools}:{os.environ['PATH']}"}
    settings = [*TINY, "sft.epochs=500", "hardware.checkpoint_every=20"]
    with standing(tmp_path, settings, "sft/*.partial/resume/last.ckpt", slurm) as job:
        job.send_signal(signal.SIGUSR1)
        job.send_signal(signal.SIGCONT)
        _, said = job.communicate(timeout=TIMEOUT)
    assert job.returncode == 143, said
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert said.strip().splitlines()[-1].startswith("requeued: ")
    assert "sft" not in published(tmp_path)
    (saved,) = (tmp_path / "store").glob("sft/*.partial/resume/last.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 21  # the step after the one that it stood at
