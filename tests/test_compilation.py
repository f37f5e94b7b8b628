"""torch's real pool of compile workers, one of which does not answer, keeps no process alive.

Told to end, torch waits 300 seconds for the pool. It then raises an error in its exit hook, which is seen here.
"""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs import ROOT, TIMEOUT

# The pool that inductor starts for its kernels on a GPU; here with a job that never ends, and standing still.
POOL = """
import functools, os, signal, sys, time
from torch._inductor import config
from selfcontrast import compilation, preemption
compilation.GRACE = 0.2

def stand_still(named):
    from torch._inductor.async_compile import AsyncCompile
    config.compile_threads, config.worker_start_method = 2, "subprocess"
    pool = AsyncCompile.process_pool()
    worker = pool.submit(os.getpid).result(120)
    pool.submit(functools.partial(time.sleep, 10000))
    os.kill(pool.process.pid, signal.SIGSTOP)
    with open(named + ".writing", "w") as file:
        file.write(f"{pool.process.pid} {worker}")
    os.rename(named + ".writing", named)
"""
WAYS = {
    "a command that ends": "with preemption.ending():\n stand_still(sys.argv[1])\n",
    "a command that SIGTERM ends": (
        "with preemption.ending():\n stand_still(sys.argv[1])\n os.kill(os.getpid(), signal.SIGTERM)\n"
        " time.sleep(10000)\n"
    ),
    "a process that compiles": "compilation.end_workers_at_exit()\nstand_still(sys.argv[1])\n",
    "a rank of a training": (
        "import multiprocessing\n"
        "def rank(named):\n compilation.end_workers_at_exit()\n stand_still(named)\n"
        "if __name__ == '__main__':\n"
        " process = multiprocessing.get_context('fork').Process(target=rank, args=sys.argv[1:])\n"
        " process.start()\n process.join()\n sys.exit(process.exitcode)\n"
    ),
}


@pytest.mark.slow  # each imports torch twice
@pytest.mark.parametrize("way", WAYS)
def test_compile_workers_that_do_not_answer_are_killed(way: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", POOL + WAYS[way], str(tmp_path / "named")],
        cwd=ROOT,
        env={**os.environ, "SELFCONTRAST_GRACE": "1000"},  # so that nothing else ends it
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == (143 if "SIGTERM" in way else 0), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ended: " not in ended.stderr  # by the thread that has the last word
    for pid in map(int, (tmp_path / "named").read_text().split()):
        wait_until_dead(pid)


def wait_until_dead(pid: int) -> None:
    """A worker looks for its parent every second."""
    try:
        psutil.Process(pid).wait(TIMEOUT)
    except psutil.NoSuchProcess:
        return
