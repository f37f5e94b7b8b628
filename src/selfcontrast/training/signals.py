"""Signals that end a job, put off to a moment when its state can be saved.

While training runs, SIGTERM (a scheduler preempts, a user cancels) and, where somebody handles them, SIGUSR1 and
SIGUSR2 (a time limit is near) are only noted. Between two steps the checkpoint is written, and then the signal does
what it would have done at once: `train.py` ends or requeues the job, submitit's own handler requeues it its way.
"""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Postponed:
    """A context in which ending signals are noted, and told to `on_signal` where that is given."""

    def __init__(self, on_signal: Callable[[int], None] | None = None) -> None:
        self.on_signal = on_signal
        self.noted: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Postponed":
        for number in ENDING:
            before = signal.getsignal(number)
            if number == signal.SIGTERM or callable(before):
                self._handlers[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def deliver(self) -> None:
        """Leaves the context and lets a noted signal have its effect."""
        self.__exit__(None, None, None)
        if self.noted is not None:
            signal.raise_signal(self.noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = number
        if self.on_signal:
            self.on_signal(number)
