"""What a job does when it is told to end: it goes, with a code that says so, and back into SLURM's queue if asked.

    #SBATCH --signal=USR1@120     # two minutes before the time limit: save, requeue, end

SIGTERM ends the job with code 143. Whether it runs again is its sender's business: SLURM requeues what it preempts
by itself, and a job that `scancel` ends must stay ended. Under submitit, its own handler of its own signal stays.
"""

import os
import signal
import subprocess
import sys
from types import FrameType

ENDED = 143  # 128 + SIGTERM: what schedulers take for "terminated", not for success


def end_when_told() -> None:
    """Installs the handlers, for this process. Training puts them off until it has saved its state."""
    signal.signal(signal.SIGTERM, _end)
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, _requeue)


def _end(number: int, frame: FrameType | None) -> None:
    print("terminated: finished stages are kept; the same command goes on from there", file=sys.stderr)
    sys.exit(ENDED)


def _requeue(number: int, frame: FrameType | None) -> None:
    if os.environ.get("SLURM_PROCID", "0") == "0":  # once per job
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
    print("requeued: the job goes on from where it stopped", file=sys.stderr)
    sys.exit(ENDED)
