"""Log the progress of long work every 30 seconds: to the log file, and to a screen that shows no progress bars."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

INTERVAL = 30.0  # seconds between lines
MIN_STEP = 0.001  # seconds; a faster step is replayed from an earlier attempt


@dataclass
class WorkCounter:
    """Progress of work of a known size.

    Attributes:
        done: number of finished units of `total`, including those of an earlier attempt.
        on_change: receives `done` whenever it changes, for a progress bar.
        loss: the latest training loss.
        unsaved: how many of `done` are in an unfinished shard.
        start: time of the start, and `done` at that time. The rate counts from that time, not from the previous line,
            because the responses of a batch end together.
        updated_at: time of the latest `reach`.
    """

    total: int
    unit: str
    done: int
    on_change: Callable[[int], object] | None = None
    loss: float | None = None
    unsaved: int = 0
    start: tuple[float, int] = field(init=False)
    updated_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.start = (time.monotonic(), self.done)

    def reach(self, done: int, loss: float) -> None:
        """Record a finished step. Steps of an earlier attempt arrive all at once and are not in the rate."""
        now = time.monotonic()
        if now - self.updated_at < MIN_STEP:
            self.start = (now, done)
        self.done, self.loss, self.updated_at = done, loss, now

    def advance(self, units: int, unsaved: bool = False) -> None:
        """Record finished units.

        Args:
            units: all units of a finished shard; with `unsaved`, further units of a shard that is not written yet.
        """
        self.done += units if unsaved else units - self.unsaved
        self.unsaved = self.unsaved + units if unsaved else 0
        if self.on_change:
            self.on_change(self.done)

    def line(self) -> str:
        """Describe progress, mean rate and remaining time."""
        done = self.done
        rate = (done - self.start[1]) / max(1e-9, time.monotonic() - self.start[0])
        parts = [f"{done:,} of {self.total:,} {self.unit}s"]
        if rate > 0:
            parts += [f"{rate:.3g} a second", f"{_time((self.total - done) / rate)} left"]
        return ", ".join([*parts, *([] if self.loss is None else [f"loss {self.loss:.4g}"])])


_current: WorkCounter | None = None


def count(total: int, unit: str, done: int = 0, on_change: Callable[[int], object] | None = None) -> WorkCounter:
    """Start a counter for the progress lines of the current stage. The caller updates `done`."""
    global _current
    _current = WorkCounter(total, unit, done, on_change)
    return _current


def advance_unsaved(units: int, unit: str) -> None:
    """Record finished units of a shard that is not written yet. A negative number takes back units that are done again.

    The call has no effect if the current counter counts something else, or is in another process.
    """
    if _current and _current.unit == unit:
        _current.advance(units, unsaved=True)


def finish() -> None:
    """End the counted work. The stage may continue with other work."""
    global _current
    _current = None


def current() -> WorkCounter | None:
    return _current


@contextmanager
def heartbeat(name: str) -> Iterator[None]:
    """Log the progress of a stage every `INTERVAL` seconds while the context is open."""
    global _current
    _current, start, ended = None, time.monotonic(), threading.Event()

    def log_lines() -> None:
        while not ended.wait(INTERVAL):
            elapsed = f"for {_time(time.monotonic() - start)} so far"
            _log_line(f"{name:<24} {_current.line() if _current else elapsed}")

    thread = threading.Thread(target=log_lines, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _current = None


def _log_line(line: str) -> None:
    """Log a line. If a terminal shows progress bars, write it to the log files only."""
    if not sys.stderr.isatty():
        log.info("%s", line)
        return
    record = log.makeRecord(log.name, logging.INFO, __file__, 0, line, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
