"""What a job does when it is told to end: it goes, with a code that says so, and back into SLURM's queue if asked.

    #SBATCH --signal=USR1@120     # two minutes before the time limit: save, requeue, end

SIGTERM ends the job with code 143. Whether it runs again is its sender's business: SLURM requeues what it preempts
by itself, and a job that `scancel` ends must stay ended. Under submitit, its own handler of its own signal stays.

A sweep agent of W&B's sends SIGTERM, too, to the runs that early termination has given up. Those end well, with code 0:
an agent counts any other as a failure, and gives up itself after a few.
"""

import os
import signal
import subprocess
import sys
from threading import Event
from types import FrameType

ENDED = 143  # 128 + SIGTERM: what schedulers take for "terminated", not for success
_unwanted = Event()  # the run that is tracked


class Stopped(SystemExit):
    """By a sweep's early termination, or by a user on W&B's page: what was computed is kept, and no more is wanted."""


def end_when_told() -> None:
    """Installs the handlers, for this process. Training puts them off until it has saved its state."""
    signal.signal(signal.SIGTERM, _end)
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, _requeue)


def stop() -> None:
    """What W&B calls, from a thread of its own, when the run is to stop."""
    _unwanted.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _end(number: int, frame: FrameType | None) -> None:
    agent = "WANDB_SWEEP_ID" in os.environ and "SLURM_JOB_ID" not in os.environ  # there it may be SLURM's signal
    if agent or _unwanted.is_set():
        _unwanted.clear()  # in a multirun this process goes on with the next job
        print("stopped early: finished stages are kept", file=sys.stderr)
        raise Stopped(0)
    print("terminated: finished stages are kept; the same command goes on from there", file=sys.stderr)
    sys.exit(ENDED)


def _requeue(number: int, frame: FrameType | None) -> None:
    if os.environ.get("SLURM_PROCID", "0") == "0":  # once per job
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
    print("requeued: the job goes on from where it stopped", file=sys.stderr)
    sys.exit(ENDED)
