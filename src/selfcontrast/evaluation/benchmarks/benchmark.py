"""What every benchmark is given, and what it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from selfcontrast.data.example import Example, Verifier
from selfcontrast.evaluation.benchmarks.answers import Asking
from selfcontrast.evaluation.evaluate import ANSWERS
from selfcontrast.evaluation.judges import JudgeContext
from selfcontrast.evaluation.statistics import Interval

VERSION = 4
JUDGMENTS = "judgments.parquet"


@dataclass(frozen=True)
class Subject:
    """A policy to be measured.

    Attributes:
        label: its name.
        scores: the folder of its answers: of the stage `evaluate`, or those to the benchmark's own questions.
        baseline: that of the SFT model; None for the SFT model itself.
        examples: the held-out prompts that are evaluated.
        decoding: name of the decoding whose answers are measured.
    """

    label: str
    scores: Path
    baseline: Path | None
    examples: Sequence[Example]
    decoding: str
    surroundings: JudgeContext


@dataclass(frozen=True)
class Line:
    """A number of a benchmark: of one system, what it is, and its interval.

    `kind` says how it is written: "rating" (1 to 10), "share" (of one) or "difference" (of either). `note` stands
    beside the number wherever it is shown: why it is weak, or missing.
    """

    system: str
    what: str
    kind: str
    value: Interval
    note: str = ""


@dataclass(frozen=True)
class Options:
    """Of the intervals: their level, and the bootstrap's resamples and seed."""

    confidence: float
    n_bootstrap: int
    seed: int


class Benchmark(Protocol):
    """A benchmark. Its fields are its config."""

    def check(self, verifier: Verifier | None) -> None:
        """Raises `UserError` for what can be known before any compute."""

    def left_out(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        """Why it does not apply to this data, if so."""
        ...

    @property
    def relative(self) -> bool:
        """Whether it compares with the SFT model, which then is no subject itself."""
        ...

    def asking(self, examples: Sequence[Example]) -> Asking | None:
        """What it has every policy answer; None where the stage evaluate's answers are what it measures."""
        ...

    def own_prompts(self) -> dict[str, str]:
        """By id what its questions say, where it brings its own: they may stand among the training prompts."""
        ...

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        """Writes its results to `folder`; returns the small facts of it, `coverage` and `cost` among them."""
        ...

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """Its numbers, from the results of each system."""
        ...


def answers_of(folder: Path, decoding: str) -> dict[tuple[str, int], tuple[str, ...]]:
    """Per prompt and sample the answers to all its turns."""
    frame = pd.read_parquet(folder / ANSWERS)
    chosen = frame[frame["decoding"] == decoding].sort_values(["id", "sample", "turn"])
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    for name, sample, text in zip(chosen["id"], chosen["sample"], chosen["text"], strict=True):
        place = (str(name), int(sample))
        found[place] = (*found.get(place, ()), str(text))
    return found
