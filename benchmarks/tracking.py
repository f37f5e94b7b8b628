"""What tracking costs a job, in CPU time, W&B's own processes included.

    OMP_NUM_THREADS=1 python benchmarks/tracking.py --rounds 5

Other arguments are overrides of train.py. The job is computed once, without tracking. Then it is recalled, in turns
with W&B (offline) and without tracking: a recalled job tells W&B all that it told when it was computed (every step's
metrics, tables, artifacts, files), so the difference is what that costs, and no training hides it. W&B also watches
the machine while a job runs, which is measured on a run that does nothing for a minute. Linux alone can count
processes that outlive their parent.
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
    """Of a command and of everything that it starts; exits where it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    process = subprocess.Popen([sys.executable, *command], env=kept, stdout=subprocess.DEVNULL)
    seconds = 0.0
    while True:
        try:
            pid, status, used = os.wait4(-1, 0)
        except ChildProcessError:  # none left
            return seconds
        if pid == process.pid and status:
            sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
        seconds += used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", help="where the job may have been computed before; else it is computed anew")
    own, overrides = parser.parse_known_args()
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1)
    with tempfile.TemporaryDirectory() as folder:
        out, store = Path(folder) / "out", own.store or f"{folder}/store"
        job = [str(TRAIN), f"hydra.run.dir={out}", f"store={store}", *overrides]
        cpu_seconds(*job, *MODES["none"])
        result = json.loads((out / "result.json").read_text())
        computed = sum(stage["seconds"] for stage in result["stages"])
        records = sum(map(len, result["histories"].values()))
        print(f"the job: {computed:.0f} s of stages, {records} records of metrics", flush=True)
        added = []
        for number in range(own.rounds):
            found = {mode: cpu_seconds(*job, *MODES[mode]) for mode in list(MODES)[:: 1 if number % 2 else -1]}
            added.append(found["wandb"] - found["none"])
            told = ", ".join(f"{mode} {seconds:.2f} s" for mode, seconds in found.items())
            print(f"round {number + 1}, recalled, CPU: {told}; added {added[-1]:+.2f} s", flush=True)
        watching = cpu_seconds("-c", IDLE, folder, str(MINUTE)) - cpu_seconds("-c", IDLE, folder, "0")
        print(f"watching the machine for a minute: {watching:.2f} s CPU", flush=True)
    telling, whole = statistics.median(added), statistics.median(added) + watching * computed / MINUTE
    print(f"telling {telling:.2f} s, all in all {whole:.2f} s CPU of {computed:.0f} s: {100 * whole / computed:.2f}%")


if __name__ == "__main__":
    main()
