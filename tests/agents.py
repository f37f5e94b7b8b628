"""Run W&B's real commands, `wandb sweep` and `wandb agent`, on a tiny job against a stand-in server."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jobs import ROOT, SECRET, TIMEOUT, TINY
from wandb_server import WandbServer

# `wandb agent` polls the server every 5 s: too slow for a test.
WANDB = "from wandb.cli.cli import cli; from wandb.wandb_agent import Agent; Agent.POLL_INTERVAL = 0.2; cli()"


def environment(folder: Path, server: WandbServer) -> dict[str, str]:
    """Return the environment of commands in `folder`: a store in it, `SECRET` as W&B's key, no developer's settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_", "SELFCONTRAST_"))}
    inherited |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    inherited |= {"SELFCONTRAST_STORE": str(folder / "store"), "NETRC": str(folder / "netrc"), "HOME": str(folder)}
    quick = {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "0.2"}  # seconds between uploads of metrics
    return {**inherited, **quick, **server.environment, "WANDB_API_KEY": SECRET}


def sweep_file(folder: Path, name: str, parameters: Mapping[str, Any] | None = None, *overrides: str) -> dict[str, Any]:
    """Write `folder/sweep.yaml`, the sweep `sweeps/NAME` over the tiny job, and return its content.

    Args:
        parameters: used instead of the parameters of the sweep's file, if given.
        overrides: used instead of the same settings of the tiny job.
    """
    sweep: dict[str, Any] = yaml.safe_load((ROOT / "sweeps" / name).read_text())
    sweep["parameters"] = parameters or sweep["parameters"]
    replaced = {o.split("=")[0] for o in overrides} | set(sweep["parameters"])
    tiny = [*(o for o in TINY if o.split("=")[0] not in replaced), *overrides]
    sweep["program"] = str(ROOT / "train.py")
    assert sweep["command"][-1] == "${args_no_hyphens}"
    sweep["command"][-1:-1] = tiny
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return sweep


def start_wandb(*arguments: str, cwd: Path, env: Mapping[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WANDB, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wandb(*arguments: str, cwd: Path, env: Mapping[str, str]) -> str:
    """Run a W&B command, which must succeed, and return its output."""
    with start_wandb(*arguments, cwd=cwd, env=env) as process:
        return output_of(process)


def output_of(process: "subprocess.Popen[str]") -> str:
    try:
        output, _ = process.communicate(timeout=4 * TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def stage_of(artifact: str) -> str:
    """Return the stage in an artifact's name, STAGE-KEY."""
    return artifact.rsplit("-", 1)[0]


def files_with_secret(folder: Path) -> list[Path]:
    """Return the files in `folder` that contain W&B's key."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 50
    return [file for file in files if SECRET.encode() in file.read_bytes()]
