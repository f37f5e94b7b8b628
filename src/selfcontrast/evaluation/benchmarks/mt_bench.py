"""Dialogues of several turns, each answer graded or compared, as in MT-Bench (Zheng et al. 2023, arXiv 2306.05685)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from selfcontrast.constrained import Count, Samples, Seed, Temperature, Text
from selfcontrast.data.candidates import Decoding
from selfcontrast.data.example import Example, Verifier
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.answers import Asking
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options, Subject, answers_of
from selfcontrast.evaluation.benchmarks.judged import Judged, file_hash, judged
from selfcontrast.evaluation.benchmarks.pairs import SFT, both_orders, judge_pairs, pair_lines
from selfcontrast.evaluation.benchmarks.questions import Questions, read_questions
from selfcontrast.evaluation.contamination import user_text
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.statistics import Interval, mean_interval, paired_difference, rate_interval
from selfcontrast.files import EVALUATION
from selfcontrast.models.truncation import unread

GRADINGS = ("single", "pairwise")
CATEGORY = "category "  # how the names of a category's lines begin
OURS = EVALUATION / "mt_bench" / "questions.jsonl"

Answers = Mapping[tuple[str, int], tuple[str, ...]]


def _file_of(questions: str | None) -> str | None:
    return str(OURS) if questions == "ours" else questions


def _questions_hash(questions: str | None) -> str | None:
    return file_hash(_file_of(questions))


@dataclass(frozen=True, kw_only=True)
class MTBench(Judged):
    """Attributes:
    grading: "single" grades every answer from 1 to 10, "pairwise" compares it with the SFT model's, in both orders.
    questions: a file, or "ours" for the 80 of this project; None for the held-out dialogues of the data.
    references: a file of answers to some of the questions; None for those in `questions`.
    guided: the categories that are judged beside a reference, where there is one.
    temperature: of the categories that `temperatures` does not name.
    samples: dialogues per question, where the temperature is above 0.
    seed: of sampling.
    """

    grading: str
    questions: Text | None = field(metadata={"in_key_as": _questions_hash})
    references: Text | None = field(metadata={"in_key_as": file_hash})
    guided: list[Text]
    temperature: Temperature
    temperatures: dict[str, Temperature]
    samples: Samples
    max_new_tokens: Count
    max_length: Count
    seed: Seed

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grading not in GRADINGS:
            raise UserError(f"grading={self.grading}: one of {', '.join(GRADINGS)}")
        for value in (self.temperature, *self.temperatures.values()):
            _ = self._decoding(value)

    @property
    def relative(self) -> bool:
        return self.grading == "pairwise"

    @property
    def own_questions(self) -> bool:
        """Whether the questions are this project's or the data's: published figures are of FastChat's."""
        return self.questions in (None, "ours")

    @property
    def file(self) -> str | None:
        return _file_of(self.questions)

    @property
    def files(self) -> list[str]:
        return [*super().files, *([self.references] if self.references else [])]

    def check(self, verifier: Verifier | None) -> None:
        if self.references and self.file is None:
            raise UserError(f"references={self.references}: of which questions? Give questions=FILE, or no references")
        super().check(verifier)

    def read(self) -> None:
        vars(self).pop("_read", None)  # of an earlier check
        _ = self._read

    def nothing_in(self, examples: Sequence[Example]) -> str | None:
        return None if any(e.turns for e in examples) else "the data has no dialogues to play"

    def own_prompts(self) -> dict[str, str]:
        asked = [] if self.file is None else self._read.examples[: self.limit]
        return {question.id: user_text(question) for question in asked}

    def asking(self, examples: Sequence[Example]) -> Asking | None:
        by_temperature: dict[float, list[Example]] = {}
        for question in self._questions(examples).examples:
            value = self.temperatures.get(question.category, self.temperature)
            by_temperature.setdefault(value, []).append(question)
        return Asking([(self._decoding(value), some) for value, some in by_temperature.items()], self.seed)

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        asked = self._questions(subject.examples)
        systems = [answers_of(subject.scores, subject.decoding)]
        if self.relative and subject.baseline:
            systems.append(answers_of(subject.baseline, subject.decoding))
        cases = [case for question in asked.examples for case in self._cases(question, systems, asked.references)]
        facts = {"questions": len(asked.examples), "guided": sum(bool(case.references) for case in cases)}
        name = f"mt_bench {subject.label}"
        if self.relative:
            return {**facts, **judge_pairs(folder, name, self.judge, cases, subject, self.min_coverage)}
        return {**facts, **self._grade(folder, name, cases, subject)}

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """Over all, by turn and by category: win rates over SFT, or means and the difference from SFT."""
        frames = {name: pd.read_parquet(folder / JUDGMENTS) for name, folder in folders.items()}
        if self.relative:
            pairs = {name: both_orders(frame) for name, frame in frames.items()}
            wins = [line for name, own in pairs.items() for line in _parts(name, own, "outcome", "share", options)]
            return [*pair_lines(pairs, SFT, options), *wins]
        usable = {name: frame[frame["status"] == "ok"] for name, frame in frames.items()}
        found = []
        for name, frame in usable.items():
            found.append(Line(name, "mean", "rating", _mean(frame, "rating", options)))
            if name != SFT and SFT in usable:
                found.append(Line(name, "difference from SFT", "difference", _difference(frame, usable[SFT], options)))
            found += _parts(name, frame, "rating", "rating", options)
        return found

    @cached_property
    def _read(self) -> Questions:
        assert self.file is not None
        return read_questions(self.file, self.references)

    def _questions(self, examples: Sequence[Example]) -> Questions:
        read = Questions([e for e in examples if e.turns], {}) if self.file is None else self._read
        return Questions(read.examples[: self.limit], read.references)

    def _decoding(self, temperature: float) -> Decoding:
        samples = self.samples if temperature > 0 else 1
        return Decoding(samples, temperature, 1.0, self.max_new_tokens, self.max_length)

    def _cases(
        self, question: Example, systems: Sequence[Answers], references: Mapping[str, tuple[str, ...]]
    ) -> list[Case]:
        right = references.get(question.id, ()) if question.category in self.guided else ()
        return [
            Case(question, turn, tuple(texts[: turn + 1] for texts in answers), right[: turn + 1], sample)
            for sample in range(self.samples)
            if (answers := [own[question.id, sample] for own in systems if (question.id, sample) in own])
            for turn in range(len(question.turns))
        ]

    def _grade(self, folder: Path, name: str, cases: Sequence[Case], subject: Subject) -> dict[str, Any]:
        with self.judge.open(subject.surroundings) as judge:
            found, counts = judge(cases), unread(judge, cases)
        rows = [
            {
                "id": case.example.id,
                "category": case.example.category,
                "sample": case.sample,
                "turn": case.turn,
                "question": case.dialogue(case.answers[0])[-1]["content"],
                "answer": case.answers[0][-1],
                "status": judgment.status,
                "rating": judgment.value,
                "reply": judgment.reply,
            }
            for case, judgment in zip(cases, found, strict=True)
        ]
        pd.DataFrame(rows).astype({"rating": "float64"}).to_parquet(folder / JUDGMENTS)
        return judged(name, self.judge, found, self.min_coverage, counts)


def _parts(name: str, frame: pd.DataFrame, value: str, kind: str, options: Options) -> list[Line]:
    """By turn, and by category."""
    found = []
    for turn in sorted(set(frame["turn"])):
        found.append(Line(name, f"turn {turn + 1}", kind, _mean(frame[frame["turn"] == turn], value, options)))
    for category in sorted(set(frame["category"]) - {""}):
        part = frame[frame["category"] == category]
        found.append(Line(name, f"{CATEGORY}{category}", kind, _mean(part, value, options)))
    return found


def _mean(frame: pd.DataFrame, value: str, options: Options) -> Interval:
    """Average over questions and their turns: one that is answered greedily, once, counts as much as the others."""
    by_turn = frame.groupby(["id", "turn"], as_index=False)[value].mean()
    if value == "outcome":
        return rate_interval(by_turn[value], by_turn["id"], confidence=options.confidence)
    return mean_interval(by_turn[value], by_turn["id"], **vars(options))


def _difference(own: pd.DataFrame, base: pd.DataFrame, options: Options) -> Interval:
    # By question and turn: where one of the two has lost a turn's judgment, the other's counts for nothing either.
    both = own.groupby(["id", "turn"])["rating"].mean().to_frame("own")
    both = both.join(base.groupby(["id", "turn"])["rating"].mean().rename("base"), how="inner").reset_index()
    return paired_difference(both["own"], both["base"], both["id"], **vars(options))
