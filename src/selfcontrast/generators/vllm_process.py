"""Run vLLM in separate processes: with another environment's interpreter, or several engines at once."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.generators import vllm_worker
from selfcontrast.generators.vllm_worker import GRACE, Completion, CompletionRequest

Respond = Callable[[list[CompletionRequest]], list[list[Completion]]]
"""Requests -> all responses to each of them, in the same order."""


@contextmanager
def engines(python: str, options: dict[str, Any], devices: Sequence[str | None]) -> Iterator[Respond]:
    """Start one engine for each of `devices`. Yield a function that distributes requests over them.

    Args:
        python: an interpreter that has vLLM; it does not need this package.
        options: arguments of `vllm_worker.VllmEngine`.
        devices: `CUDA_VISIBLE_DEVICES` of each engine; None for this process's value.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(python, visible)) for visible in devices]
        for process in processes:
            process.send(options)
        for process in processes:
            process.receive()

        def respond(requests: list[CompletionRequest]) -> list[list[Completion]]:
            busy = processes[: len(requests)]
            for i, process in enumerate(busy):
                process.send(requests[i :: len(busy)])
            answers: list[list[Completion]] = [[] for _ in requests]
            for i, process in enumerate(busy):
                answers[i :: len(busy)] = process.receive()
            return answers

        yield respond


@contextmanager
def _process(python: str, visible: str | None) -> Iterator["_Process"]:
    process = _Process(python, visible)
    try:
        yield process
    finally:
        process.close()


class _Process:
    """A `vllm_worker` process, with a log file of its output. The file is deleted if the process does not fail."""

    def __init__(self, python: str, visible: str | None) -> None:
        descriptor, name = tempfile.mkstemp(prefix="selfcontrast-vllm-", suffix=".log")
        self.log = Path(name)
        self.failed = False
        with os.fdopen(descriptor, "wb") as log:
            self.process = subprocess.Popen(
                # -E ignores PYTHONPATH. -P leaves out the script's folder, whose vllm.py would shadow vLLM.
                [python, "-E", "-P", vllm_worker.__file__],
                env=os.environ | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                start_new_session=True,
            )

    def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail(None)

    def receive(self) -> list[list[Completion]]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        message = json.loads(line) if line.endswith("\n") else {}
        if "answers" not in message:
            self._fail(message.get("error"))
        return list(message["answers"])

    def _fail(self, error: str | None) -> None:
        self.failed = True
        if error is None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
            error = f"exited with code {self.process.wait(GRACE)}. Last line: {last}"
        raise UserError(f"vLLM failed: {error[:400]}. Full log: {self.log}")

    def close(self) -> None:
        """End the process and all processes that it started."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # the process may have died before it read everything
            self.process.stdin.close()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.failed = True
        finally:
            with suppress(ProcessLookupError):  # normally all processes of the group have ended
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process.stdout.close()
        if not self.failed:
            self.log.unlink(missing_ok=True)
