"""Test that signals end a command in bounded time, with a line at once and no traceback."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from jobs import ROOT, TIMEOUT
from selfcontrast import preemption
from selfcontrast.errors import UserError

BEFORE = "import atexit, os, signal, sys, time\nfrom selfcontrast import preemption\npreemption.QUIET = 0.01\n"
READY = "print('ready', flush=True)\n"
# During training, the handler only records the signal. In these scripts, nothing acts on the record.
DEFERRED = "from selfcontrast.training.signals import DeferredSignals\n"


@contextmanager
def running(code: str, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a script, wait until it prints "ready", and kill its process group on exit."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "SLURM_"))}
    with subprocess.Popen(
        [sys.executable, "-c", BEFORE + code],
        cwd=ROOT,
        env={**inherited, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    ) as script:
        try:
            assert script.stdout is not None
            assert script.stdout.readline() == "ready\n", script.communicate()[1]
            yield script
        finally:
            with suppress(ProcessLookupError):
                os.killpg(script.pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ignored_by_handler_ends_process_within_grace(number: signal.Signals, code: int) -> None:
    body = "with preemption.end_on_signal():\n signal.signal({}, lambda *a: None)\n {} while True: time.sleep(0.1)\n"
    with running(body.format(int(number), READY.strip() + "\n"), SELFCONTRAST_GRACE="0.2") as script:
        script.send_signal(number)
        _, stderr = script.communicate(timeout=TIMEOUT)
    assert script.returncode == code
    assert f"{number.name}: ending" in stderr
    assert "in 0 s" in stderr
    assert stderr.splitlines()[-1].startswith("ended: finished stages")
    assert "Traceback" not in stderr


def test_signal_deferred_by_training_ends_process_within_grace() -> None:
    body = (
        DEFERRED
        + "with preemption.end_on_signal():\n with DeferredSignals():\n  "
        + READY
        + "  while True: time.sleep(0.1)\n"
    )
    with running(body, SELFCONTRAST_GRACE="0.2") as script:
        script.send_signal(signal.SIGTERM)
        assert script.wait(TIMEOUT) == 143


def test_process_with_hanging_exit_hook_ends_within_grace() -> None:
    body = "atexit.register(time.sleep, 10000)\nwith preemption.end_on_signal():\n " + READY + " time.sleep(10000)\n"
    with running(body, SELFCONTRAST_GRACE="0.2") as script:
        script.send_signal(signal.SIGTERM)
        _, stderr = script.communicate(timeout=TIMEOUT)
    assert script.returncode == 143
    assert "terminated:" in stderr


def test_signal_to_forked_child_does_not_end_parent() -> None:
    body = (
        "with preemption.end_on_signal():\n"
        " before = signal.signal(signal.SIGTERM, lambda *a: os._exit(7))\n"
        " read_end, write_end = os.pipe()\n"
        " child = os.fork()\n"
        " if not child:\n"
        "  os.write(write_end, b'1')\n"
        "  time.sleep(10000)\n"
        " os.read(read_end, 1)\n"
        " signal.signal(signal.SIGTERM, before)\n"
        " os.kill(child, signal.SIGTERM)\n"
        " code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        " " + READY + " time.sleep(0.5)\n"  # long enough to notice a process that ends wrongly
        " sys.exit(code)\n"
    )
    with running(body, SELFCONTRAST_GRACE="0.2") as script:
        assert script.wait(TIMEOUT) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_after_command_prints_nothing(number: signal.Signals) -> None:
    body = (
        "def hook():\n "
        + READY
        + " time.sleep(10000)\natexit.register(hook)\nwith preemption.end_on_signal():\n pass\n"
    )
    with running(body) as script:
        script.send_signal(number)
        _, stderr = script.communicate(timeout=TIMEOUT)
    assert script.returncode == -number
    assert stderr == ""


def test_interrupt_prints_one_line_without_traceback() -> None:
    with running("with preemption.end_on_signal():\n " + READY + " time.sleep(10000)\n") as script:
        script.send_signal(signal.SIGINT)
        _, stderr = script.communicate(timeout=TIMEOUT)
    assert script.returncode == 1
    assert stderr.splitlines()[-1].startswith("interrupted:")
    assert "Traceback" not in stderr


def test_usr1_deferred_by_training_requeues_the_job(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >{tmp_path}/requeued\n")
    (tmp_path / "scontrol").chmod(0o755)
    body = (
        DEFERRED
        + "with preemption.end_on_signal():\n with DeferredSignals():\n  "
        + READY
        + "  while True: time.sleep(0.1)\n"
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    with running(body, SELFCONTRAST_GRACE="0.2", SLURM_JOB_ID="7", PATH=path) as script:
        script.send_signal(signal.SIGUSR1)
        assert script.wait(TIMEOUT) == 143
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", ""])
def test_grace_with_invalid_number_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFCONTRAST_GRACE", value)
    with pytest.raises(UserError, match="SELFCONTRAST_GRACE="):
        preemption.grace()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_reproduce_forwards_signal_and_waits_for_child(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import signal, sys, time\n"
        "def end(*args):\n open('ended', 'w').close()\n sys.exit(143)\n"
        f"signal.signal({int(number)}, end)\n" + READY + "time.sleep(10000)\n"
    )
    body = f"sys.path.insert(0, {str(ROOT)!r})\nfrom studies.paper import reproduce\nos.chdir({str(tmp_path)!r})\n"
    body += "sys.exit(reproduce.call([sys.executable, 'child.py']))\n"
    with running(body) as script:
        script.send_signal(number)
        assert script.wait(TIMEOUT) == 143
    assert (tmp_path / "ended").exists()


def test_reproduce_forwards_signal_that_does_not_interrupt_the_wait(tmp_path: Path) -> None:
    """Another thread receives the signal, so that the system call of the main thread goes on.

    A signal just before the system call has the same effect, but this happens rarely.
    """
    (tmp_path / "child.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])\n" + READY + "time.sleep(10000)\n"
    )
    body = (
        f"import threading\nsys.path.insert(0, {str(ROOT)!r})\nfrom studies.paper import reproduce\n"
        "threading.Thread(target=time.sleep, args=(10000,), daemon=True).start()\n"
        f"os.chdir({str(tmp_path)!r})\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "sys.exit(reproduce.call([sys.executable, 'child.py']))\n"
    )
    with running(body) as script:
        script.send_signal(signal.SIGTERM)
        assert script.wait(30) == 143
