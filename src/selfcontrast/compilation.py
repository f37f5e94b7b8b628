"""End the processes that torch compiles in, in bounded time.

torch's exit hook waits up to 300 seconds for them; one that does not answer would keep a job alive long after SIGTERM.
Every command ends them when it is through (`preemption.ending`). A rank of a training, which is a process of its own,
ends them by a hook that comes before torch's.
"""

import atexit
import sys
from functools import cache
from multiprocessing.util import Finalize
from threading import Thread
from typing import Any

GRACE = 5.0  # seconds that compile workers have to end by themselves


@cache
def end_workers_at_exit() -> None:
    """Let this process call `end_workers` at its end. Call it before compiling, in every process that compiles."""
    from torch._inductor import async_compile  # noqa: F401  # registers its hook, which ours then precedes

    atexit.register(end_workers)
    # A rank of a training ends by multiprocessing's hooks; torch's has the priority sys.maxsize.
    Finalize(None, end_workers, exitpriority=sys.maxsize + 1)


def end_workers() -> None:
    """Let torch end its compile workers; kill those that are left after `GRACE`. torch's own hook then finds none."""
    module = sys.modules.get("torch._inductor.async_compile")
    if module is None or not module._pool_set:
        return
    processes = [process for pool in list(module._pool_set) for process in _processes(pool)]
    telling = Thread(target=module.shutdown_compile_workers, daemon=True)
    telling.start()
    telling.join(GRACE)
    if telling.is_alive():
        for process in processes:
            process.kill()
        telling.join(GRACE)
        module.after_fork()  # forgets the pools


def _processes(pool: Any) -> list[Any]:
    """Of a pool of torch's in a process apart, that process, which takes its workers along; else the workers."""
    own = getattr(pool, "process", None)
    return [own] if own else list((getattr(pool, "_processes", None) or {}).values())
