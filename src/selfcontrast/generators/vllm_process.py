"""vLLM in processes of its own: another environment's interpreter, or several engines side by side."""

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
from selfcontrast.generators.vllm_worker import GRACE, Ask, Completion

Respond = Callable[[list[Ask]], list[list[Completion]]]
"""All responses to each ask, in the order of the asks."""


@contextmanager
def engines(python: str, options: dict[str, Any], devices: Sequence[str | None]) -> Iterator[Respond]:
    """One engine for each of `devices`, which share the asks between them.

    Args:
        python: an interpreter that has vLLM; this package it need not have.
        options: arguments of `vllm_worker.Engine`.
        devices: what each engine gets as `CUDA_VISIBLE_DEVICES`; None for that of this process.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(python, visible)) for visible in devices]
        for process in processes:
            process.send(options)
        for process in processes:
            process.receive()

        def respond(asks: list[Ask]) -> list[list[Completion]]:
            busy = processes[: len(asks)]
            for i, process in enumerate(busy):
                process.send(asks[i :: len(busy)])
            answers: list[list[Completion]] = [[] for _ in asks]
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
    """One `vllm_worker`, and the file that holds what it prints until it has ended well."""

    def __init__(self, python: str, visible: str | None) -> None:
        descriptor, name = tempfile.mkstemp(prefix="selfcontrast-vllm-", suffix=".log")
        self.log = Path(name)
        self.failed = False
        with os.fdopen(descriptor, "wb") as log:
            self.process = subprocess.Popen(
                # Without our PYTHONPATH, and without its own folder, where `vllm` would be a module of ours.
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
            said = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
            error = f"its process ended with {self.process.wait(GRACE)}; the last it said: {last}"
        raise UserError(f"vLLM failed: {error[:400]} (all it said is in {self.log})")

    def close(self) -> None:
        """Ends the process and all that it has started."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # it may have died with something unread
            self.process.stdin.close()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.failed = True
        finally:
            with suppress(ProcessLookupError):  # all have gone, as they should
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process.stdout.close()
        if not self.failed:
            self.log.unlink(missing_ok=True)
