"""Define the interface of benchmarks: their input, their numbers, and their methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from selfcontrast.data.example import Example, Verifier
from selfcontrast.evaluation.benchmarks.answers import AnswerRequest
from selfcontrast.evaluation.evaluate import ANSWERS
from selfcontrast.evaluation.judges import JudgeContext
from selfcontrast.evaluation.statistics import Interval

VERSION = 4
JUDGMENTS = "judgments.parquet"


@dataclass(frozen=True)
class Subject:
    """A policy to be measured.

    Attributes:
        label: the policy's name.
        scores: folder of the policy's answers: those of the evaluate stage, or those to the benchmark's own questions.
        baseline: the same folder of the SFT model's answers; None if the policy is the SFT model.
        examples: the evaluated held-out prompts.
        decoding: name of the decoding whose answers are measured.
    """

    label: str
    scores: Path
    baseline: Path | None
    examples: Sequence[Example]
    decoding: str
    context: JudgeContext


@dataclass(frozen=True)
class Line:
    """One number of a benchmark, with its interval, for one system.

    Attributes:
        what: the measure.
        kind: scale of the number: "rating" (1 to 10), "share" (0 to 1) or "difference" (of two ratings or two shares).
        note: reason why the number is weak or missing, shown next to it; "" for none.
    """

    system: str
    what: str
    kind: str
    value: Interval
    note: str = ""


@dataclass(frozen=True)
class Options:
    """The settings of intervals: their confidence level, and the bootstrap's resamples and seed."""

    confidence: float
    n_bootstrap: int
    seed: int


class Benchmark(Protocol):
    """A benchmark. Its fields are its configuration."""

    def check(self, verifier: Verifier | None) -> None:
        """Raise `UserError` for every mistake that can be found before anything is computed."""

    def skip_reason(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        """Return the reason why the benchmark does not apply to this data, or None."""
        ...

    @property
    def relative(self) -> bool:
        """True if policies are compared with the SFT model. The SFT model itself is then not measured."""
        ...

    def answer_request(self, examples: Sequence[Example]) -> AnswerRequest | None:
        """Return the questions that every policy answers; None if the answers of the evaluate stage are measured."""
        ...

    def own_prompts(self) -> dict[str, str]:
        """Return the texts of the benchmark's own questions by id. They are checked for contamination."""
        ...

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        """Write the results to `folder` and return a summary. With a judge, it has `coverage` and `cost`."""
        ...

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """Return the benchmark's numbers from the results of each system."""
        ...


def answers_of(folder: Path, decoding: str) -> dict[tuple[str, int], tuple[str, ...]]:
    """Read the answers of a decoding, by prompt and sample. Each value is a tuple over the turns."""
    frame = pd.read_parquet(folder / ANSWERS)
    chosen = frame[frame["decoding"] == decoding].sort_values(["id", "sample", "turn"])
    answers: dict[tuple[str, int], tuple[str, ...]] = {}
    for name, sample, text in zip(chosen["id"], chosen["sample"], chosen["text"], strict=True):
        key = (str(name), int(sample))
        answers[key] = (*answers.get(key, ()), str(text))
    return answers
