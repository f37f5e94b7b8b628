"""Bound the end of a process that has compiled.

torch's exit hook waits up to 300 seconds for the processes that it compiles in; one that does not answer would keep a
job alive long after SIGTERM.
"""

import atexit
import subprocess
import sys
from functools import cache, partial
from multiprocessing.util import Finalize

GRACE = 5.0  # seconds that compile workers have to end by themselves


@cache
def end_workers_at_exit() -> None:
    """Let torch wait for its compile workers for `GRACE` seconds, then kill them. Call it before compiling."""
    from torch._inductor import async_compile  # noqa: F401  # registers its hook, which ours then precedes

    atexit.register(_bound_waits)
    # A rank of a training ends by multiprocessing's hooks; torch's has the priority sys.maxsize.
    Finalize(None, _bound_waits, exitpriority=sys.maxsize + 1)


def _bound_waits() -> None:
    from torch._inductor import async_compile

    for pool in getattr(async_compile, "_pool_set", ()):
        process = getattr(pool, "process", None)
        if isinstance(process, subprocess.Popen):
            process.wait = partial(_wait_or_kill, process)  # type: ignore[method-assign]


def _wait_or_kill(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
    try:
        return subprocess.Popen.wait(process, GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return subprocess.Popen.wait(process)
