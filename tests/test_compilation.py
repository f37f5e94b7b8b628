"""Test that torch's pool of compile workers keeps no process alive, even if a worker hangs.

At exit, torch would wait 300 seconds for the pool and then raise an error in its exit hook.
"""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs import ROOT, TIMEOUT

# Start the pool that inductor uses for GPU kernels, give it a job that never ends, and stop it (SIGSTOP).
POOL = """
import functools, os, signal, sys, time
from torch._inductor import config
from selfcontrast import compilation, preemption
compilation.GRACE = 0.2

def hang(pid_file):
    from torch._inductor.async_compile import AsyncCompile
    config.compile_threads, config.worker_start_method = 2, "subprocess"
    pool = AsyncCompile.process_pool()
    worker = pool.submit(os.getpid).result(120)
    pool.submit(functools.partial(time.sleep, 10000))
    os.kill(pool.process.pid, signal.SIGSTOP)
    with open(pid_file + ".writing", "w") as file:
        file.write(f"{pool.process.pid} {worker}")
    os.rename(pid_file + ".writing", pid_file)
"""
SCRIPTS = {
    "a command that ends": "with preemption.end_on_signal():\n hang(sys.argv[1])\n",
    "a command that forgets the pool before it is shut down": (
        "compilation.GRACE = 0\nwith preemption.end_on_signal():\n hang(sys.argv[1])\n"
    ),
    "a command that SIGTERM ends": (
        "with preemption.end_on_signal():\n"
        " hang(sys.argv[1])\n os.kill(os.getpid(), signal.SIGTERM)\n time.sleep(10000)\n"
    ),
    "a process that compiles": "compilation.end_workers_at_exit()\nhang(sys.argv[1])\n",
    "a training rank": (
        "import multiprocessing\n"
        "def rank(pid_file):\n compilation.end_workers_at_exit()\n hang(pid_file)\n"
        "if __name__ == '__main__':\n"
        " process = multiprocessing.get_context('fork').Process(target=rank, args=sys.argv[1:])\n"
        " process.start()\n process.join()\n sys.exit(process.exitcode)\n"
    ),
}


@pytest.mark.slow  # each case imports torch twice
@pytest.mark.parametrize("script", SCRIPTS)
def test_hung_pool_of_compile_workers_is_killed_at_exit(script: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", POOL + SCRIPTS[script], str(tmp_path / "pid_file")],
        cwd=ROOT,
        env={**os.environ, "SELFCONTRAST_GRACE": "1000"},  # seconds, so that the deadline does not end the process
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == (143 if "SIGTERM" in script else 0), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ended: " not in ended.stderr  # the deadline's thread did not end the process
    for pid in map(int, (tmp_path / "pid_file").read_text().split()):
        wait_until_dead(pid)


def wait_until_dead(pid: int) -> None:
    """Wait until the process has ended. A worker checks every second whether its parent lives."""
    try:
        psutil.Process(pid).wait(TIMEOUT)
    except psutil.NoSuchProcess:
        return
