"""Test the judge itself: with pairs whose better answer is known, and with probe answers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfcontrast.constrained import Text
from selfcontrast.data.example import Example
from selfcontrast.data.jsonl import read_rows
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options, Subject
from selfcontrast.evaluation.benchmarks.judge_benchmark import JudgeBenchmark, file_hash
from selfcontrast.evaluation.benchmarks.pairs import both_orders, judge_pairs
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.judges.calibration import agreement
from selfcontrast.evaluation.statistics import rate_interval

log = logging.getLogger(__name__)

SYSTEM = "judge"  # the lines describe the judge, not a policy
GOLD = "gold.parquet"
TIE = 0.1  # a verdict weighted by probability counts as a tie if it is this near to 0.5
SAME, TWICE, CONSTANT, EMPTY = "target", "target twice", "constant", "empty"


@dataclass(frozen=True, kw_only=True)
class Probes(JudgeBenchmark):
    """Compare the target with answers that must not win: an empty one, a constant, the target, the target twice.

    Attributes:
        constant: an answer that is right for no prompt.
    """

    constant: str

    def empty_reason(self, examples: Sequence[Example]) -> str | None:
        return None if self._prompts(examples) else "no prompt has a target"

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        """Write the judgments. In the summary, `failed_probes` are the probes that the judge mostly got wrong."""
        pairs = [
            Case(example, 0, ((example.target,), (answer,)), sample=index)
            for example in self._prompts(subject.examples)
            for index, answer in enumerate(self._answers(example).values())
        ]
        summary = judge_pairs(folder, "probes", self.judge, pairs, subject, self.min_coverage)
        failed = []
        for probe, judged_pairs in _by_probe(folder).items():
            if (accuracy := float(_is_right(probe, judged_pairs).mean())) < 0.5:
                failed.append(probe)
                log.warning("probes: the judge is right on %.1f%% of the pairs with probe %r", 100 * accuracy, probe)
        return {**summary, "failed_probes": failed}

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """Return per probe how often the judge was right. A tie is right if the target was compared with itself."""
        lines = []
        for probe, pairs in _by_probe(next(iter(folders.values()))).items():
            what = {SAME: "a tie with itself", TWICE: "no worse than the target twice"}.get(
                probe, f"better than {probe}"
            )
            value = rate_interval(
                _is_right(probe, pairs).astype(np.float64), pairs["id"], confidence=options.confidence
            )
            lines.append(Line(SYSTEM, f"target: {what}", "share", value))
        return lines

    def _prompts(self, examples: Sequence[Example]) -> list[Example]:
        return [e for e in examples if not e.turns and e.target.strip()][: self.limit]

    def _answers(self, example: Example) -> dict[str, str]:
        target = example.target
        return {SAME: target, TWICE: f"{target}\n\n{target}", CONSTANT: self.constant, EMPTY: ""}


@dataclass(frozen=True, kw_only=True)
class Calibration(JudgeBenchmark):
    """Measure agreement on pairs whose better answer is known: from a file, or the data's targets and rejected answers.

    Attributes:
        gold: file in AlpacaEval's format (.json or .jsonl), with rows {instruction, output_1, output_2, preference}.
            `preference` is 1, 2, or 1.5 for neither. None for the data's own pairs.
    """

    gold: Text | None = field(metadata={"in_key_as": file_hash})

    @property
    def file(self) -> str | None:
        return self.gold

    def read(self) -> None:
        assert self.gold is not None
        read_gold(self.gold)

    def empty_reason(self, examples: Sequence[Example]) -> str | None:
        return None if self._pairs(examples) else "the data has no rejected answers"

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        pairs = self._pairs(subject.examples)
        gold = [{"id": case.example.id, "sample": case.sample, "gold": value} for case, value in pairs]
        pd.DataFrame(gold).to_parquet(folder / GOLD)
        cases = [case for case, _ in pairs]
        return judge_pairs(folder, "calibration", self.judge, cases, subject, self.min_coverage)

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        folder = next(iter(folders.values()))
        pairs = both_orders(pd.read_parquet(folder / JUDGMENTS)).merge(
            pd.read_parquet(folder / GOLD), on=["id", "sample"]
        )
        if not len(pairs):
            return []
        gold, *outcomes, longer, ids = (pairs[name].to_numpy() for name in ("gold", "first", "second", "longer", "id"))
        quality = agreement(gold, outcomes, longer, ids, **vars(options))
        values = [
            ("agrees with gold", "share", quality.accuracy),
            ("verdicts that flip with the order", "share", quality.position.flip_rate),
            ("first position's share", "share", quality.position.first_position_share),
        ]
        if quality.length:
            values.append(("leans to the longer answer, more than gold", "difference", quality.length))
        return [Line(SYSTEM, what, kind, value) for what, kind, value in values]

    def _pairs(self, examples: Sequence[Example]) -> list[tuple[Case, float]]:
        """Return pairs of answers with their gold outcome: 1 if the first is better, 0 if the second is."""
        if self.gold is not None:
            return read_gold(self.gold)[: self.limit]
        with_rejected = [e for e in examples if e.rejected and not e.turns]
        return [(Case(e, 0, ((e.target,), (e.rejected,))), 1.0) for e in with_rejected][: self.limit]


def read_gold(path: str) -> list[tuple[Case, float]]:
    """Read the pairs of a file with their gold outcomes. For an unusable row, raise a `UserError` that names it."""
    pairs: list[tuple[Case, float]] = []
    prompts: dict[str, int] = {}
    for where, row in read_rows(path, "gold"):
        texts = [row.get(name) if isinstance(row, dict) else None for name in ("instruction", "output_1", "output_2")]
        preference = row.get("preference") if isinstance(row, dict) else None
        if not all(isinstance(text, str) for text in texts) or preference not in (1, 1.5, 2):
            raise UserError(
                f"{path}, {where}: a row needs instruction, output_1, output_2, and preference: 1, 2 or 1.5."
            )
        instruction, first, second = (str(text) for text in texts)
        name = str(prompts.setdefault(instruction, len(prompts)))
        example = Example(name, [{"role": "user", "content": instruction}], "")
        pairs.append((Case(example, 0, ((first,), (second,)), sample=len(pairs)), 2.0 - float(preference)))
    return pairs


def _is_right(probe: str, pairs: pd.DataFrame) -> pd.Series:
    """Return True for each pair that the judge got right.

    If the target is compared with itself, both orders are the same prompt and get the same verdict. The mean of both
    outcomes would always be a tie, so only the outcome of one order is checked.
    """
    if probe == SAME:
        return (pairs["first"] - 0.5).abs() < TIE
    if probe == TWICE:
        return (pairs["first"] >= 0.5 - TIE) & (pairs["second"] >= 0.5 - TIE)
    return pairs["outcome"] > 0.5


def _by_probe(folder: Path) -> dict[str, pd.DataFrame]:
    pairs = both_orders(pd.read_parquet(folder / JUDGMENTS))
    return {
        name: rows
        for index, name in enumerate((SAME, TWICE, CONSTANT, EMPTY))
        if len(rows := pairs[pairs["sample"] == index])
    }
