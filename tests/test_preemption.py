"""The end of a command: told at once, in bounded time, without a traceback; each in a process of its own."""

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
# What keeps Python's handlers from running: here a handler that notes, as a training does, and never comes to act.
PUT_OFF = "from selfcontrast.training.signals import Postponed\n"


@contextmanager
def running(code: str, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """A script that has come to its `READY`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "SLURM_"))}
    with subprocess.Popen(
        [sys.executable, "-c", BEFORE + code],
        cwd=ROOT,
        env={**kept, **variables},
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


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_that_nothing_acts_on_ends_the_process_in_the_grace(sent: signal.Signals, code: int) -> None:
    body = "with preemption.ending():\n signal.signal({}, lambda *a: None)\n {} while True: time.sleep(0.1)\n"
    with running(body.format(int(sent), READY.strip() + "\n"), SELFCONTRAST_GRACE="0.2") as script:
        script.send_signal(sent)
        _, said = script.communicate(timeout=TIMEOUT)
    assert script.returncode == code
    assert f"{sent.name}: ending as soon as what is under way can be left, in 0 s at the latest\n" in said
    assert said.endswith("the same command goes on from there\n")
    assert "Traceback" not in said


def test_training_that_has_put_a_signal_off_ends_in_the_grace() -> None:
    body = PUT_OFF + "with preemption.ending():\n with Postponed():\n  " + READY + "  while True: time.sleep(0.1)\n"
    with running(body, SELFCONTRAST_GRACE="0.2") as script:
        script.send_signal(signal.SIGTERM)
        assert script.wait(TIMEOUT) == 143


def test_exit_hook_that_waits_ends_in_the_grace() -> None:
    body = "atexit.register(time.sleep, 10000)\nwith preemption.ending():\n " + READY + " time.sleep(10000)\n"
    with running(body, SELFCONTRAST_GRACE="0.2") as script:
        script.send_signal(signal.SIGTERM)
        _, said = script.communicate(timeout=TIMEOUT)
    assert script.returncode == 143
    assert "terminated: finished stages are kept" in said


def test_signal_of_a_forked_child_is_not_this_process_s() -> None:
    body = (
        "with preemption.ending():\n"
        " before = signal.signal(signal.SIGTERM, lambda *a: os._exit(7))\n"
        " hearing, telling = os.pipe()\n"
        " child = os.fork()\n"
        " if not child:\n"
        "  os.write(telling, b'1')\n"
        "  time.sleep(10000)\n"
        " os.read(hearing, 1)\n"
        " signal.signal(signal.SIGTERM, before)\n"
        " os.kill(child, signal.SIGTERM)\n"
        " code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        " " + READY + " time.sleep(0.5)\n"  # in which the process would end
        " sys.exit(code)\n"
    )
    with running(body, SELFCONTRAST_GRACE="0.2") as script:
        assert script.wait(TIMEOUT) == 7


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signal_after_the_command_has_finished_prints_nothing(sent: signal.Signals) -> None:
    body = "def hook():\n " + READY + " time.sleep(10000)\natexit.register(hook)\nwith preemption.ending():\n pass\n"
    with running(body) as script:
        script.send_signal(sent)
        _, said = script.communicate(timeout=TIMEOUT)
    assert script.returncode == -sent
    assert said == ""


def test_interrupted_command_says_so_in_one_line() -> None:
    with running("with preemption.ending():\n " + READY + " time.sleep(10000)\n") as script:
        script.send_signal(signal.SIGINT)
        _, said = script.communicate(timeout=TIMEOUT)
    assert script.returncode == 1
    assert said.splitlines()[-1].startswith("interrupted: finished stages are kept")
    assert "Traceback" not in said


def test_requeue_is_asked_for_though_nothing_acts_on_the_signal(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >{tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    body = PUT_OFF + "with preemption.ending():\n with Postponed():\n  " + READY + "  while True: time.sleep(0.1)\n"
    path = f"{tmp_path}:{os.environ['PATH']}"
    with running(body, SELFCONTRAST_GRACE="0.2", SLURM_JOB_ID="7", PATH=path) as script:
        script.send_signal(signal.SIGUSR1)
        assert script.wait(TIMEOUT) == 143
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", ""])
def test_grace_that_is_no_number_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFCONTRAST_GRACE", value)
    with pytest.raises(UserError, match="SELFCONTRAST_GRACE="):
        preemption.grace()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_reproduce_passes_a_signal_on_and_waits(sent: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import signal, sys, time\n"
        "def end(*given):\n open('ended', 'w').close()\n sys.exit(143)\n"
        f"signal.signal({int(sent)}, end)\n" + READY + "time.sleep(10000)\n"
    )
    body = f"sys.path.insert(0, {str(ROOT)!r})\nfrom studies.paper import reproduce\nos.chdir({str(tmp_path)!r})\n"
    body += "sys.exit(reproduce.call([sys.executable, 'child.py']))\n"
    with running(body) as script:
        script.send_signal(sent)
        assert script.wait(TIMEOUT) == 143
    assert (tmp_path / "ended").exists()
