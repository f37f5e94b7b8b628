"""Kill a tiny job at fifty random moments. It must end with the numbers of an undisturbed job.

python tests/fifty_kills.py [--kills 50] [--seed 0]

It takes about ten minutes, so it is not part of the test suite. Moments are drawn from the job's whole duration: kills
hit all stages, their publication, the imports and the report. The exit code is 1 if a job fails or a number differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from jobs import TINY, comparable_numbers, read_result, run_train, start_train


def run_and_kill(folder: Path, seconds: float) -> bool:
    """Run the job and kill its process group after `seconds`. Return whether it was still running."""
    with start_train(*TINY, cwd=folder) as job:
        try:
            job.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, kills, failures, jobs = random.Random(args.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch, "plain")
        plain.mkdir()
        run_train("--help", cwd=plain)  # starts the server that forks jobs, so that its start is not timed
        start = time.perf_counter()
        ended = run_train(*TINY, cwd=plain)
        if ended.returncode:
            sys.exit(ended.stderr)
        duration, expected = time.perf_counter() - start, comparable_numbers(read_result(plain / "out"))
        while kills < args.kills:
            folder, jobs = Path(scratch, f"job{jobs}"), jobs + 1
            folder.mkdir()
            for _ in range(min(5, args.kills - kills)):
                if not run_and_kill(folder, draw.uniform(0, duration)):
                    break
                kills += 1
            last = run_train(*TINY, cwd=folder)
            same = last.returncode == 0 and comparable_numbers(read_result(folder / "out")) == expected
            failures += not same
            print(f"{kills} kills, {jobs} jobs, {failures} different", last.stderr if not same else "", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
