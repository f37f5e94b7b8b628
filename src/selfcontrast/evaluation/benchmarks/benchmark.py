"""What every benchmark is given, and what it gives."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from selfcontrast.data.example import Example, Verifier
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges import Judge, Judgment, Surroundings
from selfcontrast.evaluation.scores import ANSWERS
from selfcontrast.evaluation.statistics import Interval
from selfcontrast.generators.backend import Responder

VERSION = 1
JUDGMENTS = "judgments.parquet"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A policy to be measured.

    Attributes:
        label: its name.
        model: its folder.
        scores: the folder of its stage `evaluate`.
        baseline: that of the SFT model; None for the SFT model itself.
        examples: the held-out prompts that are evaluated.
        decoding: name of the decoding whose answers headlines are made of.
    """

    label: str
    model: Path
    scores: Path
    baseline: Path | None
    examples: Sequence[Example]
    decoding: str
    responder: Responder
    surroundings: Surroundings


@dataclass(frozen=True)
class Line:
    """A number of a benchmark: of one system, what it is, and its interval.

    `kind` says how it is written: "rating" (1 to 10), "difference" (of ratings) or "share" (of one).
    """

    system: str
    what: str
    kind: str
    value: Interval


@dataclass(frozen=True)
class Options:
    """Of the intervals: their level, and the bootstrap's resamples and seed."""

    level: float
    resamples: int
    seed: int


class Benchmark(Protocol):
    """A benchmark. Its fields are its config."""

    def check(self, verifier: Verifier | None) -> None:
        """Raises `UserError` for what can be known before any compute."""

    def left_out(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        """Why it does not apply to this data, if so."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What decides its result, as JSON."""
        ...

    @property
    def relative(self) -> bool:
        """Whether it compares with the SFT model, which then is no subject itself."""
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


def judged(name: str, judge: Judge, judgments: Sequence[Judgment], least: float) -> dict[str, Any]:
    """How many of the judgments can be used, and what they cost.

    Raises:
        UserError: where they are fewer than the share `least`.
    """
    statuses = Counter(judgment.status for judgment in judgments)
    failed = {str(status): count for status, count in statuses.most_common() if status != "ok"}
    coverage = statuses["ok"] / max(1, len(judgments))
    said = ", ".join(f"{status} {count}" for status, count in failed.items())
    if coverage < least or not judgments:
        reason = next((j.reply for j in judgments if j.status != "ok"), "")
        raise UserError(
            f"{name}: {statuses['ok']} of {len(judgments)} judgments can be used, {coverage:.1%}, which is below "
            f"min_coverage={least:g} ({said}; such as: {' '.join(reason.split())[:160]!r}); those are kept: mend the "
            "judge and run the same command again"
        )
    cost = judge.cost(judgments)
    log.info(
        "%s: %d of %d judgments can be used%s%s",
        name,
        statuses["ok"],
        len(judgments),
        f" ({said})" if said else "",
        f", cost {cost:.2f}" if cost is not None else "",
    )
    return {
        "judgments": len(judgments),
        "coverage": coverage,
        **failed,
        "judge_prompt_tokens": sum(j.prompt_tokens for j in judgments),
        "judge_completion_tokens": sum(j.completion_tokens for j in judgments),
        "cost": cost,
    }


def answers_of(folder: Path, decoding: str) -> dict[tuple[str, int], tuple[str, ...]]:
    """Of a stage `evaluate`, per prompt and sample the answers to all its turns."""
    frame = pd.read_parquet(folder / ANSWERS)
    chosen = frame[frame["decoding"] == decoding].sort_values(["id", "sample", "turn"])
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    for name, sample, text in zip(chosen["id"], chosen["sample"], chosen["text"], strict=True):
        place = (str(name), int(sample))
        found[place] = (*found.get(place, ()), str(text))
    return found
