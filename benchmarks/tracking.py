"""Measure the CPU time that tracking adds to a job, including W&B's own processes.

    OMP_NUM_THREADS=1 python benchmarks/tracking.py --rounds 5

Other arguments are overrides of train.py. The job is computed once without tracking. Then it runs from the store,
alternately with W&B (offline) and without tracking. A cached job logs everything to W&B again (metrics of every step,
tables, artifacts, files), so the difference is the cost of logging, without the noise of training. W&B also monitors
the machine while a job runs. The cost of monitoring is measured on a run that idles for a minute. This script needs
Linux, which can count processes that outlive their parent.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"
MODES = {"none": ["tracking=none"], "wandb": ["tracking=wandb", "tracking.mode=offline"]}
ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
IDLE = """
import sys, time
from pathlib import Path
from selfcontrast.tracking import WandbTracking

with WandbTracking("selfcontrast", None, None, [], "offline", False).run("idle", {}, Path(sys.argv[1])):
    time.sleep(float(sys.argv[2]))
"""
MINUTE = 60.0


def cpu_seconds(*command: str) -> float:
    """Return the CPU seconds of a command and all its descendants; exit if it fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    process = subprocess.Popen([sys.executable, *command], env=env, stdout=subprocess.DEVNULL)
    seconds = 0.0
    while True:
        try:
            pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:  # no process is left
            return seconds
        if pid == process.pid and status:
            sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
        seconds += usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", help="a store that may hold the job; default: a new one")
    args, overrides = parser.parse_known_args()
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1)
    with tempfile.TemporaryDirectory() as folder:
        out, store = Path(folder) / "out", args.store or f"{folder}/store"
        job = [str(TRAIN), f"hydra.run.dir={out}", f"store={store}", *overrides]
        cpu_seconds(*job, *MODES["none"])
        result = json.loads((out / "result.json").read_text())
        computed = sum(stage["seconds"] for stage in result["stages"])
        records = sum(map(len, result["histories"].values()))
        print(f"the job: {computed:.0f} s of stages, {records} records of metrics", flush=True)
        added = []
        for number in range(args.rounds):
            by_mode = {mode: cpu_seconds(*job, *MODES[mode]) for mode in list(MODES)[:: 1 if number % 2 else -1]}
            added.append(by_mode["wandb"] - by_mode["none"])
            times = ", ".join(f"{mode} {seconds:.2f} s" for mode, seconds in by_mode.items())
            print(f"round {number + 1}, cached, CPU: {times}; added {added[-1]:+.2f} s", flush=True)
        monitoring = cpu_seconds("-c", IDLE, folder, str(MINUTE)) - cpu_seconds("-c", IDLE, folder, "0")
        print(f"monitoring the machine for a minute: {monitoring:.2f} s CPU", flush=True)
    logging, total = statistics.median(added), statistics.median(added) + monitoring * computed / MINUTE
    print(f"logging {logging:.2f} s, in total {total:.2f} s CPU of {computed:.0f} s: {100 * total / computed:.2f}%")


if __name__ == "__main__":
    main()
