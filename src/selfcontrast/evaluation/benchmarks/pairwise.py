"""Which of two answers a judge prefers: always in both orders, raw and at equal length."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfcontrast.data.candidates import Decoding
from selfcontrast.data.example import Example, Verifier
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.alpaca_eval import Output, read_outputs
from selfcontrast.evaluation.answers import Player
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options, Subject, answers_of, judged
from selfcontrast.evaluation.judges import Case, Judge
from selfcontrast.evaluation.judges.verifier import VerifierJudge
from selfcontrast.evaluation.statistics import Interval, length_controlled_win_rate, mean_interval, position_bias
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import NOT_IN_KEY, RESUME, settings_of

OPPONENTS = ("target", "SFT")


@dataclass(frozen=True)
class Pairwise:
    """The held-out prompts' answers against their targets, or against the SFT model's answers.

    Attributes:
        judge: a `selfcontrast.evaluation.judges.Judge`.
        against: "target" or "SFT".
        limit: the first so many prompts; None for all.
        samples: answers per prompt that are compared, at most those that there are.
        min_coverage: the share of judgments that must be usable.
    """

    against: str
    limit: int | None
    samples: int
    min_coverage: float
    judge: Any = field(metadata=NOT_IN_KEY)  # by its own fingerprint

    def __post_init__(self) -> None:
        if self.against not in OPPONENTS:
            raise UserError(f"against={self.against}: one of {', '.join(OPPONENTS)}; a file is benchmark=alpaca_eval's")
        if self.samples < 1 or (self.limit is not None and self.limit < 1):
            raise UserError("samples and limit: at least 1; limit=null for all prompts")
        if not 0 < self.min_coverage <= 1:
            raise UserError(f"min_coverage={self.min_coverage}: above 0 and at most 1")

    @property
    def relative(self) -> bool:
        return self.against == "SFT"

    def check(self, verifier: Verifier | None) -> None:
        if verifier or not isinstance(self.judge, VerifierJudge):
            self.judge.check(verifier)

    def left_out(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        if verifier is None and isinstance(self.judge, VerifierJudge):
            return "the data has no verifier"
        return None if self._prompts(examples) else "no prompt has a target to compare with"

    def fingerprint(self) -> dict[str, Any]:
        return {**settings_of(self), "judge": self.judge.fingerprint()}

    def own_prompts(self) -> dict[str, str]:
        return {}

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        own = answers_of(subject.scores, subject.decoding)
        others = answers_of(subject.baseline, subject.decoding) if self.relative and subject.baseline else None
        pairs = []
        for example in self._prompts(subject.examples):
            for sample in range(self.samples):
                if (mine := own.get((example.id, sample))) is None:
                    continue
                theirs = (example.target,) if others is None else others[example.id, sample]
                pairs.append(_pair(example, mine, theirs, sample))
        return judge_pairs(folder, f"pairwise {subject.label}", self.judge, pairs, subject, self.min_coverage)

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        return pair_lines(folders, self.against, options)

    def _prompts(self, examples: Sequence[Example]) -> list[Example]:
        """A dialogue that is played has a target for its last turn only: it is compared with another system's."""
        return [e for e in examples if self.relative or not e.turns][: self.limit]


@dataclass(frozen=True)
class AlpacaEval:
    """Answers to the instructions of a file of outputs, in AlpacaEval's format, against those outputs.

    Attributes:
        judge: a `selfcontrast.evaluation.judges.Judge`.
        outputs: the opponent's, one for each instruction.
        limit: the first so many instructions; None for all.
        min_coverage: the share of judgments that must be usable.
    """

    outputs: str
    limit: int | None
    temperature: float
    max_new_tokens: int
    max_length: int
    seed: int
    min_coverage: float
    judge: Any = field(metadata=NOT_IN_KEY)  # by its own fingerprint

    def __post_init__(self) -> None:
        _ = self._decoding
        if not 0 < self.min_coverage <= 1:
            raise UserError(f"min_coverage={self.min_coverage}: above 0 and at most 1")

    @property
    def relative(self) -> bool:
        return False

    @property
    def _decoding(self) -> Decoding:
        return Decoding(1, self.temperature, 1.0, self.max_new_tokens, self.max_length)

    def check(self, verifier: Verifier | None) -> None:
        if isinstance(self.judge, VerifierJudge):
            raise UserError("judge=verifier knows the built-in data only: name another for a file of outputs")
        read_outputs(self.outputs, "outputs")
        self.judge.check(verifier)

    def left_out(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        return None

    def fingerprint(self) -> dict[str, Any]:
        own = {name: value for name, value in settings_of(self).items() if name != "outputs"}
        file = hashlib.sha256(Path(self.outputs).read_bytes()).hexdigest()
        return {**own, "file": file, "judge": self.judge.fingerprint()}

    def own_prompts(self) -> dict[str, str]:
        return {str(i): other.instruction for i, other in enumerate(self._others())}

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        others = self._others()
        asked = [Example(str(i), [{"role": "user", "content": o.instruction}], o.output) for i, o in enumerate(others)]
        renderer = Renderer(load_tokenizer(subject.model))
        player = Player(subject.responder, subject.model, renderer, self.seed, folder / RESUME)
        played = player.play(asked, self._decoding, f"{subject.label} alpaca_eval")
        own = {answer.id: answer.text for answer in played}
        pairs = [_pair(example, (own[example.id],), (example.target,), 0) for example in asked]
        return judge_pairs(folder, f"alpaca_eval {subject.label}", self.judge, pairs, subject, self.min_coverage)

    def _others(self) -> list[Output]:
        return list(read_outputs(self.outputs, "outputs").values())[: self.limit]

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        return pair_lines(folders, "the file", options)


def judge_pairs(
    folder: Path, name: str, judge: Judge, pairs: Iterable[Case], subject: Subject, least: float
) -> dict[str, Any]:
    """Judges pairs, each with the system's own answer first, in both orders; writes a row for each judgment."""
    cases = [case for pair in pairs for case in (pair, swapped(pair))]
    with judge.open(subject.surroundings) as judging:
        found = judging(cases)
    rows = []
    for case, judgment in zip(cases, found, strict=True):
        own, other = reversed(case.answers) if case.swapped else case.answers
        value = judgment.value
        rows.append(
            {
                "id": case.example.id,
                "category": case.example.category,
                "sample": case.sample,
                "swapped": case.swapped,
                "question": case.dialogue(own)[-1]["content"],
                "answer": own[-1],
                "other": other[-1],
                "status": judgment.status,
                "outcome": value if value is None or not case.swapped else 1 - value,
                "reply": judgment.reply,
            }
        )
    pd.DataFrame(rows).astype({"outcome": "float64"}).to_parquet(folder / JUDGMENTS)
    return judged(name, judge, found, least)


def swapped(case: Case) -> Case:
    """The same two answers, shown in the other order."""
    return replace(case, answers=case.answers[::-1], swapped=not case.swapped)


def both_orders(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per pair that was judged in both orders: `first` and `second` (where the system's own was shown),
    `longer` (by how many characters its answer is), and the mean `outcome`. A pair with one order alone is left out,
    or the place would count."""
    usable = frame[frame["status"] == "ok"]
    columns = ["id", "sample"]
    shown = {
        order: usable[usable["swapped"] == flag].set_index(columns) for order, flag in (("first", 0), ("second", 1))
    }
    pairs = shown["first"][["outcome", "answer", "other"]].join(
        shown["second"]["outcome"].rename("second"), how="inner"
    )
    pairs = pairs.rename(columns={"outcome": "first"}).reset_index()
    pairs["longer"] = pairs["answer"].str.len() - pairs["other"].str.len()
    pairs["outcome"] = (pairs["first"] + pairs["second"]) / 2
    return pairs


def pair_lines(folders: Mapping[str, Path], against: str, options: Options) -> list[Line]:
    """Per system the win rate, that at equal length, and what the order of the answers did."""
    found: list[Line] = []
    for name, folder in folders.items():
        pairs = both_orders(pd.read_parquet(folder / JUDGMENTS))
        outcomes, prompts, settings = pairs["outcome"].to_numpy(), pairs["id"].to_numpy(), vars(options)
        if not len(pairs):
            continue
        controlled = length_controlled_win_rate(outcomes, pairs["longer"].to_numpy(), prompts, **settings)
        means = " (the data hardly determine it)" if controlled.near_separation else ""
        bias = position_bias(pairs["first"], pairs["second"], prompts, **settings)
        values: list[tuple[str, Interval]] = [
            (f"win rate over {against}", mean_interval(outcomes, prompts, **settings)),
            (f"win rate at equal length{means}", controlled.win_rate),
            ("verdicts that flip with the order", bias.flip_rate),
            ("first position's share", bias.first_position_share),
            ("ties", mean_interval(np.isclose(outcomes, 0.5), prompts, **settings)),
        ]
        found += [Line(name, what, "share", value) for what, value in values]
    return found


def _pair(example: Example, own: tuple[str, ...], other: tuple[str, ...], sample: int) -> Case:
    return Case(example, len(own) - 1, (own, other), sample=sample)
