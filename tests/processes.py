"""Find processes that are still running."""

import os
import time

import psutil

WORKER = "vllm_worker.py"


def vllm_workers(parent: int | None = None) -> list[int]:
    """Return the ids of the vLLM workers that `parent`, or this process, has started. Each leads a session."""
    return [child.pid for child in psutil.Process(parent).children() if any(WORKER in part for part in child.cmdline())]


def in_session(leader: int) -> list[int]:
    """Return the ids of the living processes of a session."""
    living = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return living


def wait_until_gone(leader: int, seconds: float = 60) -> None:
    """Wait until a session has no living process."""
    end = time.monotonic() + seconds
    while living := in_session(leader):
        assert time.monotonic() < end, f"processes {living} are still running after {seconds} s"
        time.sleep(0.1)
