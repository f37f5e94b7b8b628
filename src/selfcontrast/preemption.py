"""What a job does when it is told to end: it goes, with a code that says so, and back into SLURM's queue if asked.

    #SBATCH --signal=USR1@120     # two minutes before the time limit: save, requeue, end; at the latest after GRACE

SIGTERM ends the job with code 143. Whether it runs again is its sender's business: SLURM requeues what it preempts
by itself, and a job that `scancel` ends must stay ended. Under submitit, its own handler of its own signal stays.

A sweep agent of W&B's sends SIGTERM, too, to the runs that early termination has given up. Those end well, with code 0:
an agent counts any other as a failure, and gives up itself after a few.

Python's handlers run between two instructions of the main thread, which may be minutes away: a step compiles, or a
library's exit hook waits. So a thread hears of each signal at once. It says that the job is about to end, and ends it
where nothing else has done so within `GRACE`.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import FrameType

from selfcontrast.compilation import end_workers
from selfcontrast.errors import UserError

ENDED = 143  # 128 + SIGTERM: what schedulers take for "terminated", not for success
INTERRUPTED = 130  # 128 + SIGINT
GRACE = 60.0  # seconds from a signal to the end of the process, at most
GRACE_VARIABLE = "SELFCONTRAST_GRACE"  # another number of seconds: of the environment, as it is the scheduler's
QUIET = 2.0  # seconds from a signal to the line that says what is waited for
_unwanted = Event()  # the run that is tracked
_hears = 0  # the process whose signals the thread hears
_goes_on = Event()  # this process is not to end after all


class Stopped(SystemExit):
    """By a sweep's early termination, or by a user on W&B's page: what was computed is kept, and no more is wanted."""


def end_when_told() -> None:
    """Installs the handlers, for this process. Training puts them off until it has saved its state."""
    grace()
    signal.signal(signal.SIGTERM, _end)
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, _requeue)
    _hear()


@contextmanager
def ending() -> Iterator[None]:
    """Around a command: end it when told, in bounded time, and let nothing disturb its end."""
    try:
        end_when_told()
        yield
    except KeyboardInterrupt:
        sys.exit("interrupted: finished stages are kept; the same command goes on from there")
    finally:
        # From here on there is nothing to save: a signal ends the process at once, without a traceback of an exit hook.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        end_workers()


def grace() -> float:
    """Return the seconds that a job has to end, once it is told. Raises `UserError` where they are no number."""
    value = os.environ.get(GRACE_VARIABLE, str(GRACE))
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UserError(f"{GRACE_VARIABLE}={value}: seconds that a job has to end, above 0")
    return seconds


def stays() -> None:
    """Stop the clock: this process was told to end, and goes on with another job."""
    _goes_on.set()


def stop() -> None:
    """What W&B calls, from a thread of its own, when the run is to stop."""
    _unwanted.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _end(number: int, frame: FrameType | None) -> None:
    if _by_agent():
        _unwanted.clear()  # in a multirun this process goes on with the next job
        print("stopped early: finished stages are kept", file=sys.stderr)
        raise Stopped(0)
    print("terminated: finished stages are kept; the same command goes on from there", file=sys.stderr)
    sys.exit(ENDED)


def _by_agent() -> bool:
    """Whether W&B has the run end. Under SLURM, SIGTERM may be SLURM's."""
    return ("WANDB_SWEEP_ID" in os.environ and "SLURM_JOB_ID" not in os.environ) or _unwanted.is_set()


def _ask_for_requeue() -> None:
    if os.environ.get("SLURM_PROCID", "0") == "0":  # once per job
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)


def _requeue(number: int, frame: FrameType | None) -> None:
    _ask_for_requeue()
    print("requeued: the job goes on from where it stopped", file=sys.stderr)
    sys.exit(ENDED)


def _hear() -> None:
    """Start the thread that hears of each signal at once: the interpreter writes its number to a pipe."""
    global _hears
    if _hears == os.getpid():  # a worker of a launcher runs one job after another
        return
    _hears = os.getpid()
    hearing, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    # A forked child has the same pipe: what it is told is not meant for this process.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    Thread(target=_listen, args=(hearing,), daemon=True).start()


def _listen(hearing: int) -> None:
    endings = {signal.SIGTERM: ENDED, signal.SIGINT: INTERRUPTED}
    if "SLURM_JOB_ID" in os.environ:
        endings[signal.SIGUSR1] = ENDED
    while received := os.read(hearing, 1):
        number = received[0]
        if number not in endings:
            continue
        _goes_on.clear()
        if _goes_on.wait(QUIET):
            continue
        left = max(0.0, grace() - QUIET)
        name = signal.Signals(number).name
        _say(f"{name}: ending as soon as what is under way can be left, in {left:.0f} s at the latest")
        if not _goes_on.wait(left):
            _give_up(number, endings[signal.Signals(number)])


def _give_up(number: int, code: int) -> None:
    """End this process as it stands. What is published is whole, and of a training the last checkpoint is kept."""
    if number == signal.SIGUSR1:
        _ask_for_requeue()
    for child in multiprocessing.active_children():  # the other ranks of a training
        child.kill()
    _say("ended: finished stages and the last checkpoint are kept; the same command goes on from there")
    os._exit(0 if number == signal.SIGTERM and _by_agent() else code)


def _say(line: str) -> None:
    """Write a line past Python's buffers, which the main thread may hold."""
    os.write(2, f"{line}\n".encode())
