"""Run whole jobs in seconds, with the real command in a separate process."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from forked import ForkedProcess

ROOT = Path(__file__).parents[1]
TIMEOUT = 300  # seconds; a whole tiny job takes about 15

# Settings for any model and data. Every stage takes seconds. Generation has 8 shards and alignment has 32 steps, so
# both can be killed half-way.
TINY_FOR_ANY_MODEL = (
    "max_length=128",
    "sft.epochs=1",
    "sft.validations=1",
    "generator.prompts=16",
    "generator.samples=6",
    "generator.max_new_tokens=32",
    "engine.prompts_per_shard=2",
    "fraction=0.75",
    "filter.max_negatives=4",
    "filter.on_shortage=refill",
    "beta=0.1",
    "negatives=2",
    "trainer.epochs=4",
    "trainer.batch_size=2",
    "hardware.threads=1",
    "hardware.checkpoint_every=2",
    "evaluation.prompts=16",
    "evaluation.decodings=[{name: 'T=1', temperature: 1, samples: 2},{name: greedy, temperature: 0, samples: 1}]",
    "evaluation.max_new_tokens=32",
    "evaluation.n_bootstrap=200",
    "evaluation.lm_eval.tasks=[]",
)
TINY_MODEL = (
    "model.vocabulary=400",
    "model.hidden=64",
    "model.heads=2",
    "model.layers=2",
    "model.intermediate=128",
)
TINY = ("data.train=240", "data.test=48", "data.validation=24", *TINY_MODEL, *TINY_FOR_ANY_MODEL)

SECRET = "0123456789abcdef" * 2 + "planted0"  # as long as a W&B key


@dataclass(frozen=True)
class Finished:
    """A finished tiny job on built-in data, in its own folder. It ran with `SECRET` as W&B's key."""

    folder: Path
    result: dict[str, Any]
    stdout: str


def start_train(
    *overrides: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    script: str = "train.py",
    fresh: bool = False,
    stop_at: str | None = None,
) -> "subprocess.Popen[str] | ForkedProcess":
    """Start `train.py`, or another script, as the leader of a process group. Store and output (`out`) are in `cwd`.

    Args:
        fresh: start a new Python process, as a user does, instead of a fork.
        stop_at: pattern of files in `cwd`. The job stops (SIGSTOP) once a file matches. Ignored if `fresh`.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_", "SELFCONTRAST_"))}
    added = {"SELFCONTRAST_STORE": str(cwd / "store"), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    folder = [] if any(o.startswith(("hydra.", "-")) for o in overrides) else [f"hydra.run.dir={cwd / 'out'}"]
    environment, arguments = {**inherited, **added, **(env or {})}, [*folder, *overrides]
    if not fresh:
        return ForkedProcess(ROOT / script, arguments, cwd, environment, Path(tempfile.mkdtemp()) / "output", stop_at)
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test runner in the background ignores Ctrl-C; its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_train(
    *overrides: str, cwd: Path, env: Mapping[str, str] | None = None, script: str = "train.py", fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `train.py`, or another script, and wait for its end."""
    with start_train(*overrides, cwd=cwd, env=env, script=script, fresh=fresh) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except BaseException:  # a timeout, or Ctrl-C, which does not reach other process groups
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode or 0, out, err)


def wait_for(job: "subprocess.Popen[str] | ForkedProcess", folder: Path, pattern: str) -> None:
    """Wait until a file in the store of `folder` matches `pattern`."""
    end = time.monotonic() + TIMEOUT
    while not any((folder / "store").glob(pattern)):
        assert job.poll() is None, f"the job ended without a {pattern}"
        assert time.monotonic() < end, f"no {pattern} in {TIMEOUT} s"
        time.sleep(0.002)


@contextmanager
def stopped_job(
    folder: Path, overrides: Iterable[str], pattern: str, env: Mapping[str, str] | None = None
) -> Iterator[ForkedProcess]:
    """Start a job in `folder` that stops (SIGSTOP) once a file in its store matches `pattern`.

    SIGCONT continues the job. On exit, the job's process group is killed.
    """
    with start_train(*overrides, cwd=folder, env=env, stop_at=f"store/{pattern}") as job:
        try:
            end = time.monotonic() + TIMEOUT
            while job.poll() is None and psutil.Process(job.pid).status() != psutil.STATUS_STOPPED:
                assert time.monotonic() < end, f"no {pattern} in {TIMEOUT} s"
                time.sleep(0.01)
            assert job.poll() is None, f"the job ended without a {pattern}:\n{job.communicate()[1]}"
            yield job
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)


def kill_when(
    folder: Path, overrides: Iterable[str], pattern: str, inspect: Callable[[int], object] = lambda pid: None
) -> None:
    """Start a job in `folder`, and kill its process group once a file in the store matches `pattern`.

    Args:
        inspect: called with the stopped job's process id just before the kill.
    """
    with stopped_job(folder, overrides, pattern) as job:
        inspect(job.pid)


def read_result(folder: Path) -> dict[str, Any]:
    """Return a run's result.json."""
    return dict(json.loads((folder / "result.json").read_text()))


def stages(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result's stages by name."""
    return {stage["name"]: stage for stage in result["stages"]}


def comparable_numbers(result: Mapping[str, Any]) -> list[object]:
    """Return the numbers in which two runs of one job must agree exactly."""
    losses = [record["loss"] for stage in ("sft", "align") for record in result["histories"][stage] if "loss" in record]
    return [result["value"], result["comparison"], losses, result["samples"]]
