"""End torch's compile workers in bounded time.

torch's exit hook waits up to 300 seconds for them, so a worker that hangs would keep a job alive long after SIGTERM.
Every command ends them when it finishes (`preemption.end_on_signal`). A training rank is a separate process and ends
them with a hook that runs before torch's.
"""

import atexit
import sys
from contextlib import suppress
from functools import cache
from multiprocessing.util import Finalize
from threading import Thread
from typing import Any

GRACE = 5.0  # seconds for compile workers to end


@cache
def end_workers_at_exit() -> None:
    """Register `end_workers` to run at exit. Call this before compiling, in every process that compiles."""
    from torch._inductor import async_compile  # noqa: F401  # registers torch's hook; hooks run in reverse order

    atexit.register(end_workers)
    # A rank exits through multiprocessing's hooks, where torch's hook has the priority sys.maxsize.
    Finalize(None, end_workers, exitpriority=sys.maxsize + 1)


def end_workers() -> None:
    """Shut down torch's compile workers, and kill those left after `GRACE`. Then torch's own hook finds none."""
    module = sys.modules.get("torch._inductor.async_compile")
    if module is None or not module._pool_set:
        return
    processes = [process for pool in list(module._pool_set) for process in _processes(pool)]
    shutdown = Thread(target=_shut_down, args=(module,), daemon=True)
    shutdown.start()
    shutdown.join(GRACE)
    if shutdown.is_alive():
        for process in processes:
            process.kill()
        shutdown.join(GRACE)
        module.after_fork()  # forgets the pools


def _shut_down(module: Any) -> None:
    """Shut down the pools. `end_workers` may make torch forget them meanwhile, which ends torch's loop over them."""
    with suppress(RuntimeError):
        module.shutdown_compile_workers()


def _processes(pool: Any) -> list[Any]:
    """Return the processes of a torch pool to kill: the subprocess that owns the workers, else the workers."""
    process = getattr(pool, "process", None)
    return [process] if process else list((getattr(pool, "_processes", None) or {}).values())
