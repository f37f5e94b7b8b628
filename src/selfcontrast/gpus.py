"""Assign separate GPUs to the jobs that Hydra runs at once on one machine.

joblib's workers and submitit's local processes all see the same GPUs, so every job would use the first. `reserved_gpus`
locks a job's GPUs while it runs, and waits if too few are free. SLURM and Ray already assign GPUs.
"""

import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

log = logging.getLogger(__name__)

CONCURRENT_LAUNCHERS = ("JoblibLauncher", "LocalLauncher")  # run several jobs on one machine at once
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL = 1.0  # seconds


@contextmanager
def reserved_gpus(hardware: DictConfig) -> Iterator[None]:
    """Reserve `hardware.devices` GPUs for this job if several jobs run at once on this machine.

    Enter this context before torch looks for GPUs. torch does so once per process, so a worker that runs several jobs
    keeps the GPUs of its first job. This context does nothing without GPUs, or if jobs run one at a time.
    """
    settings = HydraConfig.get()
    launcher = str(settings.launcher._target_).rsplit(".", 1)[-1]
    concurrent = settings.mode == RunMode.MULTIRUN and launcher in CONCURRENT_LAUNCHERS
    gpus = visible_gpus() if concurrent and hardware.accelerator != "cpu" else []
    devices = hardware.devices if gpus else 0
    # An impossible number of devices is reported by `Hardware`.
    if not gpus or not isinstance(devices, int) or len(gpus) < devices:
        yield
        return
    with reserve(gpus, devices) as reserved:
        os.environ[VISIBLE] = ",".join(reserved)
        yield


def visible_gpus() -> list[str]:
    """Return the GPUs in CUDA_VISIBLE_DEVICES; if it is not set, all GPUs of this machine."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


@contextmanager
def reserve(gpus: Sequence[str], count: int) -> Iterator[list[str]]:
    """Lock `count` of these GPUs against this user's other processes; wait until enough are free."""
    folder = Path(tempfile.gettempdir()) / f"selfcontrast-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    announced = False
    while True:
        with ExitStack() as locks:
            locked = _lock_free(gpus, count, folder, locks)
            if len(locked) == count:
                yield locked
                return
        if not announced:
            log.info("waiting for %d of the GPUs %s, which other jobs use", count, ", ".join(gpus))
            announced = True
        time.sleep(POLL)


def _lock_free(gpus: Sequence[str], count: int, folder: Path, locks: ExitStack) -> list[str]:
    """Lock up to `count` free GPUs until `locks` closes."""
    locked: list[str] = []
    for name in gpus:
        if len(locked) == count:
            break
        with suppress(Timeout):
            locks.enter_context(FileLock(folder / f"{name}.lock", timeout=0))
            locked.append(name)
    return locked
