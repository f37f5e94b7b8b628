"""Signs of life of long work: a line at least every 30 seconds, in the job's log file and wherever no bar is drawn."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

EVERY = 30.0  # seconds
FASTEST = 0.001  # seconds; steps told faster were made by an earlier attempt


@dataclass
class Counted:
    """Work of a known size that is under way.

    Attributes:
        done: of `total`, in `unit`; what an earlier attempt did counts.
        loss: the latest, of a training.
        last: when the last line was written, and what was done then: the rate is that since.
        told: when a step was last told.
    """

    total: int
    unit: str
    done: int
    loss: float | None = None
    last: tuple[float, int] = field(init=False)
    told: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.last = (time.monotonic(), self.done)

    def reach(self, done: int, loss: float) -> None:
        """Steps that an earlier attempt made are told all at once, and are in no rate."""
        now = time.monotonic()
        if now - self.told < FASTEST:
            self.last = (now, done)
        self.done, self.loss, self.told = done, loss, now

    def line(self) -> str:
        """How much is done, how fast, and when it will be; called once per line."""
        now, done = time.monotonic(), self.done
        rate = (done - self.last[1]) / max(1e-9, now - self.last[0])
        self.last = (now, done)
        parts = [f"{done:,} of {self.total:,} {self.unit}s"]
        if rate > 0:
            parts += [f"{rate:.3g} a second", f"{_time((self.total - done) / rate)} left"]
        return ", ".join([*parts, *([] if self.loss is None else [f"loss {self.loss:.4g}"])])


_current: Counted | None = None


def count(total: int, unit: str, done: int = 0) -> Counted:
    """What the lines of the current stage say from now on; who works on it keeps `done` up to date."""
    global _current
    _current = Counted(total, unit, done)
    return _current


def finish() -> None:
    """The counted work is done, and the stage goes on with something else."""
    global _current
    _current = None


def current() -> Counted | None:
    return _current


@contextmanager
def signs_of_life(name: str) -> Iterator[None]:
    """Around a stage: says every `EVERY` seconds how far it is."""
    global _current
    _current, begun, ended = None, time.monotonic(), threading.Event()

    def tell() -> None:
        while not ended.wait(EVERY):
            so_far = f"for {_time(time.monotonic() - begun)} so far"
            _say(f"{name:<24} {_current.line() if _current else so_far}")

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
        _current = None


def _say(line: str) -> None:
    """Where a terminal shows bars, in the log files alone."""
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
