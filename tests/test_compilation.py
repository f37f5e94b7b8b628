"""A compile worker that does not answer cannot keep a process alive."""

import subprocess
import sys

# torch's own exit hook, over a pool like its: told to end, the worker goes on, and the hook waits 300 seconds.
SCRIPT = """
import subprocess, sys
from selfcontrast import compilation

compilation.GRACE = 0.1
compilation.end_workers_at_exit()

from torch._inductor import async_compile

class Pool:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def shutdown(self):
        self.process.wait(300)
        print("ended with", self.process.returncode, flush=True)

async_compile._pool_set.add(Pool())
print("training is over", flush=True)
"""


def test_a_worker_that_does_not_answer_is_killed_at_exit() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["training is over", "ended with -9"]
