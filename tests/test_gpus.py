"""Test the reservation of GPUs. It uses only their names, before CUDA is initialised, so tests need no GPU."""

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
from selfcontrast.gpus import reserve, reserved_gpus, visible_gpus

# This script reserves GPUs, prints their names, and holds them until stdin has a line or ends.
HOLD = """
import sys
from selfcontrast.gpus import reserve
with reserve(sys.argv[2:], int(sys.argv[1])) as gpus:
    print(",".join(gpus), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own folder of locks."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@contextmanager
def other_process(count: int, *gpus: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that reserves `count` of these GPUs."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(count), *gpus], env=env, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.communicate(timeout=TIMEOUT)  # this closes stdin of the process


def reserved_by(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_reserve_gives_two_jobs_different_gpus_and_a_third_job_waits() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(other_process(1, "a", "b"))
        assert reserved_by(first) == "a"
        second = stack.enter_context(other_process(1, "a", "b"))
        assert reserved_by(second) == "b"
        third = stack.enter_context(other_process(1, "a", "b"))
        first.communicate("\n", timeout=TIMEOUT)
        assert reserved_by(third) == "a"  # "a" was free only after the first job had ended


def test_reserve_skips_the_gpus_of_other_jobs() -> None:
    with other_process(1, "a", "b", "c") as process:
        assert reserved_by(process) == "a"
        with reserve(["a", "b", "c"], 2) as gpus:
            assert gpus == ["b", "c"]
    with reserve(["a", "b", "c"], 2) as gpus:
        assert gpus == ["a", "b"]


def test_reserve_releases_gpus_after_an_error() -> None:
    def fail() -> None:
        with reserve(["a"], 1):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    with reserve(["a"], 1) as gpus:
        assert gpus == ["a"]


def test_visible_gpus_come_from_the_environment_or_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f")
    assert visible_gpus() == ["3", "GPU-5f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-1\necho GPU-2\n")
    tool.chmod(0o755)
    assert visible_gpus() == ["GPU-1", "GPU-2"]


@pytest.mark.parametrize(
    ("mode", "launcher", "accelerator", "devices", "visible"),
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
def test_reserved_gpus_applies_to_concurrent_local_jobs_only(
    monkeypatch: pytest.MonkeyPatch, mode: str, launcher: str, accelerator: str, devices: int, visible: str
) -> None:
    config = OmegaConf.create({"hydra": {"mode": RunMode[mode], "launcher": {"_target_": launcher}}})
    monkeypatch.setattr(HydraConfig, "get", lambda: config.hydra)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b")
    hardware = OmegaConf.create({"accelerator": accelerator, "devices": devices})
    with other_process(1, "a", "b") as other:
        assert reserved_by(other) == "a"
        with reserved_gpus(hardware):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
