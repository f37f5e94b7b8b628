"""Test that vLLM processes leave nothing behind, whether they end, fail or are killed."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from processes import in_session, vllm_workers, wait_until_gone
from selfcontrast.errors import UserError
from selfcontrast.generators.vllm_process import engines
from selfcontrast.generators.vllm_worker import VllmEngine
from vllm_cases import FREE, GREEDY, REQUESTS, backend, hf_answers, same


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create and return the folder for the processes' log files."""
    folder = tmp_path / "logs"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_failure_at_start_raises_and_names_the_log(bare_python: str, logs: Path) -> None:
    with pytest.raises(UserError) as error, engines(bare_python, {"options": {}, "adapter": None}, [None]):
        pass
    message = re.fullmatch(r"vLLM failed: ModuleNotFoundError: .*'vllm'.* log: (.*)", str(error.value))
    assert message
    assert Path(message[1]).parent == logs
    assert "Traceback" in Path(message[1]).read_text()
    assert not vllm_workers()


def test_interpreter_that_exits_at_once_raises(tmp_path: Path, logs: Path) -> None:
    faulty = tmp_path / "python"
    faulty.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    faulty.chmod(0o700)
    pattern = r"code 3\b.* no such luck\b.* log: "
    options = {"model": "x" * 200_000}  # the options are longer than a pipe holds
    with pytest.raises(UserError, match=pattern), engines(str(faulty), {"options": options, "adapter": None}, [None]):
        pass
    assert len(list(logs.iterdir())) == 1


@pytest.mark.parametrize(
    ("path", "expected"), [("/usr/bin:/bin", "/env/bin:/usr/bin:/bin"), ("/bin:/env/bin", "/bin:/env/bin")]
)
def test_engine_finds_programs_of_its_environment(monkeypatch: pytest.MonkeyPatch, path: str, expected: str) -> None:
    """FlashInfer calls `ninja` by name, and the environment of `backend.python` is not activated."""
    search_paths: list[str] = []
    lora = SimpleNamespace(LoRARequest=None)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda: search_paths.append(os.environ["PATH"])))
    monkeypatch.setitem(sys.modules, "vllm.lora", lora)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")  # else the engine would set it for good
    monkeypatch.setenv("PATH", path)
    VllmEngine({}, None)
    assert search_paths == [expected]


@pytest.mark.vllm
def test_killed_engine_raises_and_leaves_no_process(vllm_python: str, wide_policy: Path, logs: Path) -> None:
    with backend(python=vllm_python).open(wide_policy, "cpu") as sample:
        sample(REQUESTS, FREE, 0)
        (worker,) = vllm_workers()
        assert len(in_session(worker)) > 1  # vLLM has started processes of its own
        os.kill(worker, signal.SIGSTOP)  # a stopped worker does not answer before it is killed
        threading.Timer(0.5, os.kill, (worker, signal.SIGKILL)).start()
        with pytest.raises(UserError) as error:
            sample(REQUESTS, FREE, 0)
    assert re.fullmatch(r"vLLM failed: .*code -9\b.* log: \S*", str(error.value))
    wait_until_gone(worker)
    (log,) = logs.iterdir()
    assert log.stat().st_size > 0


@pytest.mark.vllm
def test_two_engines_share_the_work_and_leave_nothing_behind(vllm_python: str, wide_policy: Path, logs: Path) -> None:
    expected = hf_answers(wide_policy)
    with backend(python=vllm_python, data_parallel_size=2).open(wide_policy, "cpu") as sample:
        workers = vllm_workers()
        assert len(workers) == 2
        assert same(sample(REQUESTS, GREEDY, 0), expected)
        assert same(sample(REQUESTS[:1], GREEDY, 0), expected[:1])
    for worker in workers:
        wait_until_gone(worker)
    assert not list(logs.iterdir())


PARENT = """
import sys
from pathlib import Path
from vllm_cases import FREE, REQUESTS, backend
with backend(python=sys.argv[1]).open(Path(sys.argv[2]), "cpu") as sample:
    sample(REQUESTS, FREE, 0)
    print("sampled", flush=True)
    sys.stdin.read()
"""


@pytest.mark.vllm
def test_idle_engine_ends_with_its_parent(vllm_python: str, wide_policy: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, vllm_python, str(wide_policy)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == "sampled\n"
            (worker,) = vllm_workers(parent.pid)
            assert len(in_session(worker)) > 1
        finally:
            parent.kill()
    wait_until_gone(worker)
