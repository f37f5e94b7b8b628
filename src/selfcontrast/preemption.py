"""End a job on a signal, in bounded time, with a distinct exit code. Under SLURM, SIGUSR1 also requeues it.

    #SBATCH --signal=USR1@120     # two minutes before the time limit: save, requeue, end; at the latest after GRACE

SIGTERM ends the job with code 143. The sender decides whether the job runs again: SLURM requeues the jobs that it
preempts, and a job ended by `scancel` must not run again. submitit's own handler, for SIGUSR2, is not replaced.

A W&B sweep agent also sends SIGTERM, to runs that early termination has stopped. They exit with code 0, because an
agent counts any other code as a failure and quits after a few failures.

Python runs handlers between two instructions of the main thread. While a step compiles or a library's exit hook waits,
a handler may wait for minutes. So a thread receives each signal at once. The thread announces the end, and ends the job
if nothing else has done so within `GRACE`.
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

ENDED = 143  # 128 + SIGTERM: schedulers read it as "terminated", not as success
INTERRUPTED = 130  # 128 + SIGINT
GRACE = 60.0  # maximum seconds from a signal to the end of the process
GRACE_VARIABLE = "SELFCONTRAST_GRACE"  # environment variable that overrides GRACE: each scheduler has its own limit
QUIET = 2.0  # seconds from a signal to the line that announces the end
_run_stopped = Event()  # set when W&B has stopped the tracked run
_watched_pid = 0  # the process whose signals the thread receives
_deadline_cancelled = Event()  # set if this process continues after all


class EarlyStop(SystemExit):
    """A stop by a sweep's early termination or by a user on W&B's page. Finished stages are kept."""


def install_handlers() -> None:
    """Install the signal handlers in this process. Training defers the signals until it has saved its state."""
    grace()
    signal.signal(signal.SIGTERM, _end)
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, _requeue)
    _watch_signals()


@contextmanager
def end_on_signal() -> Iterator[None]:
    """Wrap a command: end it on a signal, in bounded time and without a traceback."""
    try:
        install_handlers()
        yield
    except KeyboardInterrupt:
        sys.exit("interrupted: finished stages are kept; the same command resumes from there")
    finally:
        # Nothing is left to save, so a signal ends the process at once, without a traceback from an exit hook.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        end_workers()


def grace() -> float:
    """Return how many seconds a job may take to end after a signal. Raise `UserError` unless they are above 0."""
    value = os.environ.get(GRACE_VARIABLE, str(GRACE))
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UserError(
            f"{GRACE_VARIABLE}={value} must be a number of seconds above 0: how long a job may take to end."
        )
    return seconds


def cancel_deadline() -> None:
    """Cancel the deadline after a signal: this process continues with another job."""
    _deadline_cancelled.set()


def stop() -> None:
    """Stop the run. W&B calls this from its own thread."""
    _run_stopped.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _end(number: int, frame: FrameType | None) -> None:
    if _stopped_by_wandb():
        _run_stopped.clear()  # in a multirun this process continues with the next job
        print("stopped early: finished stages are kept", file=sys.stderr)
        raise EarlyStop(0)
    print("terminated: finished stages are kept; the same command resumes from there", file=sys.stderr)
    sys.exit(ENDED)


def _stopped_by_wandb() -> bool:
    """Return True if W&B stopped the run. In a sweep outside of SLURM, every SIGTERM is taken as W&B's."""
    return ("WANDB_SWEEP_ID" in os.environ and "SLURM_JOB_ID" not in os.environ) or _run_stopped.is_set()


def _ask_for_requeue() -> None:
    if os.environ.get("SLURM_PROCID", "0") == "0":  # once per job
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)


def _requeue(number: int, frame: FrameType | None) -> None:
    _ask_for_requeue()
    print("requeued: the job resumes from where it stopped", file=sys.stderr)
    sys.exit(ENDED)


def _watch_signals() -> None:
    """Start the thread that receives each signal at once: the interpreter writes its number to a pipe."""
    global _watched_pid
    if _watched_pid == os.getpid():  # a worker of a launcher runs one job after another
        return
    _watched_pid = os.getpid()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    # A forked child inherits the pipe, but its signals are not meant for this process.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    Thread(target=_listen, args=(read_end,), daemon=True).start()


def _listen(read_end: int) -> None:
    endings = {signal.SIGTERM: ENDED, signal.SIGINT: INTERRUPTED}
    if "SLURM_JOB_ID" in os.environ:
        endings[signal.SIGUSR1] = ENDED
    while received := os.read(read_end, 1):
        number = received[0]
        if number not in endings:
            continue
        _deadline_cancelled.clear()
        if _deadline_cancelled.wait(QUIET):
            continue
        remaining = max(0.0, grace() - QUIET)
        name = signal.Signals(number).name
        _write_line(f"{name}: ending at the next safe point, in {remaining:.0f} s at the latest")
        if not _deadline_cancelled.wait(remaining):
            _end_now(number, endings[signal.Signals(number)])


def _end_now(number: int, code: int) -> None:
    """End this process at once. Published artifacts are complete, and the last training checkpoint is kept."""
    if number == signal.SIGUSR1:
        _ask_for_requeue()
    for child in multiprocessing.active_children():  # the other training ranks
        child.kill()
    _write_line("ended: finished stages and the last checkpoint are kept; the same command resumes from there")
    os._exit(0 if number == signal.SIGTERM and _stopped_by_wandb() else code)


def _write_line(line: str) -> None:
    """Write a line without Python's buffers, whose lock the main thread may hold."""
    os.write(2, f"{line}\n".encode())
