"""What tracking costs: the CPU time of whole jobs, W&B's own processes included, with tracking and without, in turns.

    OMP_NUM_THREADS=1 python benchmarks/tracking.py --rounds 3 model.hidden=64 generator.prompts=256

Other arguments are overrides of train.py. Every job has a store of its own, so that it computes everything. What
tracking adds grows with the steps it logs, not with what a step costs: a job with the default's number of steps and a
smaller model adds what the default job would, in less time. Linux alone can count processes that outlive their parent.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"
MODES = {"none": ["tracking=none"], "wandb, offline": ["tracking=wandb", "tracking.mode=offline"]}
ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def run(overrides: list[str]) -> tuple[float, float, int]:
    """CPU seconds of a job and of all it starts, its wall-clock seconds, and how many records of metrics it made."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        arguments = [f"hydra.run.dir={folder}/out", f"store={folder}/store", *overrides]
        begun = time.perf_counter()
        subprocess.Popen([sys.executable, str(TRAIN), *arguments], env=kept, stdout=subprocess.DEVNULL)
        seconds = 0.0
        while True:
            try:
                _, status, used = os.wait4(-1, 0)
            except ChildProcessError:  # none left
                break
            if status:
                sys.exit(f"train.py ended with {os.waitstatus_to_exitcode(status)}")
            seconds += used.ru_utime + used.ru_stime
        wall = time.perf_counter() - begun
        histories = json.loads((Path(folder) / "out" / "result.json").read_text())["histories"]
    return seconds, wall, sum(map(len, histories.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    own, overrides = parser.parse_known_args()
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1)
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(own.rounds):
        for mode in list(MODES)[:: 1 if number % 2 == 0 else -1]:
            seconds, wall, records = run([*MODES[mode], *overrides])
            found[mode].append(seconds)
            print(f"round {number + 1}: {mode}: {seconds:.1f} s CPU, {wall:.1f} s, {records} records", flush=True)
    without, with_it = (statistics.median(found[mode]) for mode in MODES)
    added = [b - a for a, b in zip(*found.values(), strict=True)]
    print(
        f"medians: {without:.1f} s without, {with_it:.1f} s with; added per round: "
        f"{', '.join(f'{value:+.1f}' for value in added)}; median {statistics.median(added):+.1f} s, "
        f"{100 * statistics.median(added) / without:.1f}%"
    )


if __name__ == "__main__":
    main()
