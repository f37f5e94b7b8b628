"""Which GPUs a job has where Hydra runs several on one machine at once: none that another job has.

joblib's workers and submitit's local processes all see the same GPUs, and every job would take the first. So each
takes a lock per GPU for as long as it runs, and waits where all are taken. SLURM and Ray give a job its own already.
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

SIDE_BY_SIDE = ("JoblibLauncher", "LocalLauncher")  # launchers that run jobs on one machine at once
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL = 1.0  # seconds


@contextmanager
def own_gpus(hardware: DictConfig) -> Iterator[None]:
    """Lets a job that is one of several on this machine see `hardware.devices` GPUs of its own.

    To be entered before torch asks for GPUs, which it does once in a process: a worker that runs one job after another
    keeps the GPUs of its first. Nothing happens where there are none, or only one job at a time.
    """
    settings = HydraConfig.get()
    launcher = str(settings.launcher._target_).rsplit(".", 1)[-1]
    several = settings.mode == RunMode.MULTIRUN and launcher in SIDE_BY_SIDE
    found = present() if several and hardware.accelerator != "cpu" else []
    devices = hardware.devices if found else 0
    # None, too few, or no number: `Hardware` says that in its own words.
    if not found or not isinstance(devices, int) or len(found) < devices:
        yield
        return
    with taken(found, devices) as own:
        os.environ[VISIBLE] = ",".join(own)
        yield


def present() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or else all GPUs of this machine."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


@contextmanager
def taken(found: Sequence[str], count: int) -> Iterator[list[str]]:
    """`count` of the GPUs `found`, which no other process of this user takes meanwhile; waits until there are."""
    folder = Path(tempfile.gettempdir()) / f"selfcontrast-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waiting = False
    while True:
        with ExitStack() as locks:
            own = _free(found, count, folder, locks)
            if len(own) == count:
                yield own
                return
        if not waiting:
            log.info("waiting for %d of the GPUs %s: other jobs have them", count, ", ".join(found))
            waiting = True
        time.sleep(POLL)


def _free(found: Sequence[str], count: int, folder: Path, locks: ExitStack) -> list[str]:
    """At most `count` GPUs that nobody had, and that are ours until `locks` closes."""
    own: list[str] = []
    for name in found:
        if len(own) == count:
            break
        with suppress(Timeout):
            locks.enter_context(FileLock(folder / f"{name}.lock", timeout=0))
            own.append(name)
    return own
