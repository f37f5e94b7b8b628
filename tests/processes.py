"""Find running processes, and processes left behind by a test."""

import os
import time

import psutil

WORKER = "vllm_worker.py"


def vllm_workers(parent: int | None = None) -> list[int]:
    """Return the vLLM workers that a process started. Each leads a session of its own."""
    return [child.pid for child in psutil.Process(parent).children() if any(WORKER in part for part in child.cmdline())]


def in_session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def wait_until_gone(leader: int, seconds: float = 60) -> None:
    """Until nothing lives in a session."""
    end = time.monotonic() + seconds
    while left := in_session(leader):
        assert time.monotonic() < end, f"{left} still there after {seconds} s"
        time.sleep(0.1)
