"""GPUs are names here: who sees which is decided before CUDA is asked."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from jobs import TIMEOUT
from selfcontrast.gpus import own_gpus, present, taken

# Prints the GPUs it has taken, and keeps them until it is told to end.
HOLD = """
import sys
from selfcontrast.gpus import taken
with taken(sys.argv[2:], int(sys.argv[1])) as own:
    print(",".join(own), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this test alone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@contextmanager
def holding(count: int, *found: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process, which wants `count` of these."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(count), *found], env=env, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.communicate(timeout=TIMEOUT)  # its stdin is at its end


def told(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_gpus_two_jobs_get_different_ones_and_third_waits() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(holding(1, "a", "b"))
        assert told(first) == "a"
        second = stack.enter_context(holding(1, "a", "b"))
        assert told(second) == "b"
        third = stack.enter_context(holding(1, "a", "b"))
        first.communicate("\n", timeout=TIMEOUT)
        assert told(third) == "a"  # it would have been said at once, and not been "a", had it not waited


def test_gpus_job_for_two_takes_none_until_two_are_free() -> None:
    with holding(1, "a", "b", "c") as one:
        assert told(one) == "a"
        with taken(["a", "b", "c"], 2) as own:
            assert own == ["b", "c"]
    with taken(["a", "b", "c"], 2) as own:
        assert own == ["a", "b"]


def test_gpus_failed_job_releases_its_gpu() -> None:
    def fail() -> None:
        with taken(["a"], 1):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    with taken(["a"], 1) as own:
        assert own == ["a"]


def test_gpus_visible_ones_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f")
    assert present() == ["3", "GPU-5f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert present() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert present() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-1\necho GPU-2\n")
    tool.chmod(0o755)
    assert present() == ["GPU-1", "GPU-2"]


@pytest.mark.parametrize(
    ("mode", "launcher", "accelerator", "devices", "seen"),
    [
        ("MULTIRUN", "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "gpu", 1, "b"),
        ("MULTIRUN", "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher", "auto", 1, "b"),
        ("MULTIRUN", "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", "gpu", 1, "a,b"),
        ("MULTIRUN", "hydra._internal.core_plugins.basic_launcher.BasicLauncher", "gpu", 1, "a,b"),
        ("MULTIRUN", "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "cpu", 1, "a,b"),
        ("MULTIRUN", "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "gpu", 3, "a,b"),
        ("RUN", "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "gpu", 1, "a,b"),
    ],
)
def test_gpus_are_assigned_only_to_concurrent_local_jobs(
    monkeypatch: pytest.MonkeyPatch, mode: str, launcher: str, accelerator: str, devices: int, seen: str
) -> None:
    config = OmegaConf.create({"hydra": {"mode": RunMode[mode], "launcher": {"_target_": launcher}}})
    monkeypatch.setattr(HydraConfig, "get", lambda: config.hydra)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b")
    hardware = OmegaConf.create({"accelerator": accelerator, "devices": devices})
    with holding(1, "a", "b") as other:
        assert told(other) == "a"
        with own_gpus(hardware):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
