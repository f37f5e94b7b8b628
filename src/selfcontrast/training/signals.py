"""Defer signals that end a job until its state can be saved.

While training runs, SIGTERM (preemption or cancellation) is only recorded. So are SIGUSR1 and SIGUSR2 (a time limit is
near), if they have a handler. Between two steps the checkpoint is written, and then the signal takes its usual effect:
`train.py` ends or requeues the job, or submitit's handler requeues it.
"""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class DeferredSignals:
    """A context that records the signals in `ENDING` instead of handling them. It passes each signal to `on_signal`."""

    def __init__(self, on_signal: Callable[[int], None] | None = None) -> None:
        self.on_signal = on_signal
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "DeferredSignals":
        for number in ENDING:
            handler = signal.getsignal(number)
            if number == signal.SIGTERM or callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def deliver(self) -> None:
        """Leave the context and raise the recorded signal, if any."""
        self.__exit__(None, None, None)
        if self.received is not None:
            signal.raise_signal(self.received)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self.on_signal:
            self.on_signal(number)
