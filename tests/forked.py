"""Run scripts in processes that are forked from a server with torch and other slow modules already imported.

Each pytest worker starts one server. A new Python process spends five seconds on imports, so only tests of the process
itself start a new process: `start_train(…, fresh=True)`.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

from selfcontrast.environment import set_environment

ROOT = Path(__file__).parents[1]
PRELOAD = [
    "selfcontrast.config",
    "selfcontrast.pipeline",
    "selfcontrast.evaluate",
    "selfcontrast.report.terminal",
    "selfcontrast.training.ranks",
    "sentence_transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "wandb",
    "wandb.sdk.launch",
]

_context = multiprocessing.get_context("forkserver")


@cache
def serve() -> None:
    """Start this pytest worker's server, with the variables that libraries read on import and without the hub."""
    _context.set_forkserver_preload(PRELOAD)
    with patch.dict(os.environ, {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}):
        set_environment()
        forkserver.ensure_running()


class ForkedProcess:
    """A script in a forked process that leads a process group, with the interface of `subprocess.Popen`."""

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        output_stem: Path,
        stop_at: str | None = None,
    ) -> None:
        self.args = [str(script), *arguments]
        self.files = (output_stem.with_suffix(".out"), output_stem.with_suffix(".err"))
        serve()
        self._process = _context.Process(target=_run, args=(self.args, cwd, dict(env), self.files, stop_at))
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return stdout and stderr."""
        self.wait(timeout)
        out, err = (file.read_text() for file in self.files)
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def __enter__(self) -> "ForkedProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()


def _stop_at(pattern: str) -> None:
    """Make this process stop itself (SIGSTOP) once it has renamed a file and any file matches `pattern`.

    A test that polls from outside is too late on a busy machine.
    """
    stopped = False

    def watched(publish: Callable[..., None]) -> Callable[..., None]:
        def wrapper(*arguments: object, **options: object) -> None:
            nonlocal stopped
            publish(*arguments, **options)
            if not stopped and any(Path.cwd().glob(pattern)):
                stopped = True
                os.kill(os.getpid(), signal.SIGSTOP)

        return wrapper

    os.replace, os.rename = watched(os.replace), watched(os.rename)


def _run(argv: list[str], cwd: Path, env: Mapping[str, str], files: Sequence[Path], stop_at: str | None) -> None:
    from wandb.sdk.data_types._private import MEDIA_TMP

    os.setsid()
    for number, file in enumerate(files, start=1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    MEDIA_TMP.name = tempfile.mkdtemp()  # the first job that ends would delete the folder of the server
    if stop_at:
        _stop_at(stop_at)
    sys.argv = argv
    sys.path.insert(0, str(ROOT))
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not run exit functions
