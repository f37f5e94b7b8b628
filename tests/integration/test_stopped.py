"""Stop one job of several, as W&B's page does: the other jobs run."""

import subprocess
import sys
from pathlib import Path

from jobs import ROOT

# This script runs the real command with an empty pipeline. It stops the job with K = 2 as W&B's client would.
SCRIPT = f"""
import runpy, time
import selfcontrast.pipeline
from selfcontrast.preemption import stop

def run(parts, config):
    if parts.negatives == 2:
        stop()
        time.sleep(30)
    open(f"ran-{{parts.negatives}}", "w").close()

selfcontrast.pipeline.run = run
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def test_multirun_continues_after_a_stopped_job(tmp_path: Path) -> None:
    args = ["-m", "negatives=1,2,4", "data.train=64", "tracking=none", "hydra.sweep.dir=sweep", f"store={tmp_path}"]
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *args], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert sorted(file.name for file in tmp_path.glob("ran-*")) == ["ran-1", "ran-4"], ended.stderr
    assert ended.returncode == 1
    assert "stopped early" in (tmp_path / "sweep" / "1" / "error.txt").read_text()
