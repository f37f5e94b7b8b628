"""Scripts of this project in a process that is forked from a server which has imported torch and the rest already.

Each worker of pytest has such a server. A job in a process of its own pays five seconds of imports, so that is for the
tests that are about the process: `start_train(…, fresh=True)`.
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
    """Start this worker's server, with the environment that the libraries read on import. No hub is ever asked."""
    _context.set_forkserver_preload(PRELOAD)
    with patch.dict(os.environ, {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}):
        set_environment()
        forkserver.ensure_running()


class Forked:
    """A script that runs in a forked process and leads a process group, with what tests use of `subprocess.Popen`."""

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        printed: Path,
        stand_at: str | None = None,
    ) -> None:
        self.args = [str(script), *arguments]
        self.files = (printed.with_suffix(".out"), printed.with_suffix(".err"))
        serve()
        self._process = _context.Process(target=_run, args=(self.args, cwd, dict(env), self.files, stand_at))
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
        """Wait for the process to end, and return its output and errors."""
        self.wait(timeout)
        out, err = (file.read_text() for file in self.files)
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()


def _stand_still_at(pattern: str) -> None:
    """Let this process stop itself as soon as a file of `pattern` is published, which is always done by a rename.

    A test that looks at a job from outside comes too late on a busy machine.
    """
    stood = False

    def watched(publish: Callable[..., None]) -> Callable[..., None]:
        def wrapper(*arguments: object, **options: object) -> None:
            nonlocal stood
            publish(*arguments, **options)
            if not stood and any(Path.cwd().glob(pattern)):
                stood = True
                os.kill(os.getpid(), signal.SIGSTOP)

        return wrapper

    os.replace, os.rename = watched(os.replace), watched(os.rename)


def _run(words: list[str], cwd: Path, env: Mapping[str, str], files: Sequence[Path], stand_at: str | None) -> None:
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
    MEDIA_TMP.name = tempfile.mkdtemp()  # the server's, which the first job to end would delete
    if stand_at:
        _stand_still_at(stand_at)
    sys.argv = words
    sys.path.insert(0, str(ROOT))
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
