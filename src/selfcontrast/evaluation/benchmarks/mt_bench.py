"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): grade or compare every answer of multi-turn dialogues."""

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
from selfcontrast.evaluation.benchmarks.answers import AnswerRequest
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options, Subject, answers_of
from selfcontrast.evaluation.benchmarks.judge_benchmark import JudgeBenchmark, file_hash, summarize_judgments
from selfcontrast.evaluation.benchmarks.pairs import SFT, both_orders, judge_pairs, pair_lines
from selfcontrast.evaluation.benchmarks.questions import Questions, read_questions
from selfcontrast.evaluation.contamination import user_text
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.statistics import Interval, mean_interval, paired_difference, rate_interval
from selfcontrast.files import EVALUATION
from selfcontrast.models.truncation import unread

GRADINGS = ("single", "pairwise")
CATEGORY = "category "  # prefix of the names of lines for one category
OWN_QUESTIONS = EVALUATION / "mt_bench" / "questions.jsonl"

Answers = Mapping[tuple[str, int], tuple[str, ...]]


def _file_of(questions: str | None) -> str | None:
    return str(OWN_QUESTIONS) if questions == "ours" else questions


def _questions_hash(questions: str | None) -> str | None:
    return file_hash(_file_of(questions))


@dataclass(frozen=True, kw_only=True)
class MTBench(JudgeBenchmark):
    """Questions of several turns, answered turn by turn.

    Attributes:
        grading: "single" grades every answer from 1 to 10. "pairwise" compares it with the SFT model's, in both orders.
        questions: a file, or "ours" for this project's 80 questions; None for the held-out dialogues of the data.
        references: a file of reference answers to some questions; None for the reference answers in `questions`.
        guided: categories that are judged with a reference answer, if there is one.
        temperature: temperature of categories that `temperatures` does not name.
        samples: dialogues per question at temperatures above 0.
        seed: seed of sampling.
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
            raise UserError(f"grading={self.grading}: unknown grading. Use {' or '.join(GRADINGS)}.")
        for value in (self.temperature, *self.temperatures.values()):
            _ = self._decoding(value)

    @property
    def relative(self) -> bool:
        return self.grading == "pairwise"

    @property
    def own_questions(self) -> bool:
        """True if the questions are this project's or the data's. Published figures are for FastChat's questions."""
        return self.questions in (None, "ours")

    @property
    def file(self) -> str | None:
        return _file_of(self.questions)

    @property
    def files(self) -> list[str]:
        return [*super().files, *([self.references] if self.references else [])]

    def check(self, verifier: Verifier | None) -> None:
        if self.references and self.file is None:
            raise UserError(f"references={self.references} needs questions. Set questions=FILE or references=null.")
        super().check(verifier)

    def read(self) -> None:
        vars(self).pop("_read", None)  # forget the content that an earlier check has read
        _ = self._read

    def empty_reason(self, examples: Sequence[Example]) -> str | None:
        return None if any(e.turns for e in examples) else "the data has no dialogues to play"

    def own_prompts(self) -> dict[str, str]:
        examples = [] if self.file is None else self._read.examples[: self.limit]
        return {question.id: user_text(question) for question in examples}

    def answer_request(self, examples: Sequence[Example]) -> AnswerRequest | None:
        by_temperature: dict[float, list[Example]] = {}
        for question in self._questions(examples).examples:
            value = self.temperatures.get(question.category, self.temperature)
            by_temperature.setdefault(value, []).append(question)
        return AnswerRequest(
            [(self._decoding(value), questions) for value, questions in by_temperature.items()], self.seed
        )

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        questions = self._questions(subject.examples)
        systems = [answers_of(subject.scores, subject.decoding)]
        if self.relative and subject.baseline:
            systems.append(answers_of(subject.baseline, subject.decoding))
        cases = [
            case for question in questions.examples for case in self._cases(question, systems, questions.references)
        ]
        summary = {"questions": len(questions.examples), "guided": sum(bool(case.references) for case in cases)}
        name = f"mt_bench {subject.label}"
        if self.relative:
            return {**summary, **judge_pairs(folder, name, self.judge, cases, subject, self.min_coverage)}
        return {**summary, **self._grade(folder, name, cases, subject)}

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """Return win rates over SFT, or means and the difference from SFT: overall, by turn and by category."""
        frames = {name: pd.read_parquet(folder / JUDGMENTS) for name, folder in folders.items()}
        if self.relative:
            pairs = {name: both_orders(frame) for name, frame in frames.items()}
            wins = [line for name, frame in pairs.items() for line in _parts(name, frame, "outcome", "share", options)]
            return [*pair_lines(pairs, SFT, options), *wins]
        usable = {name: frame[frame["status"] == "ok"] for name, frame in frames.items()}
        lines = []
        for name, frame in usable.items():
            lines.append(Line(name, "mean", "rating", _mean(frame, "rating", options)))
            if name != SFT and SFT in usable:
                lines.append(Line(name, "difference from SFT", "difference", _difference(frame, usable[SFT], options)))
            lines += _parts(name, frame, "rating", "rating", options)
        return lines

    @cached_property
    def _read(self) -> Questions:
        assert self.file is not None
        return read_questions(self.file, self.references)

    def _questions(self, examples: Sequence[Example]) -> Questions:
        questions = Questions([e for e in examples if e.turns], {}) if self.file is None else self._read
        return Questions(questions.examples[: self.limit], questions.references)

    def _decoding(self, temperature: float) -> Decoding:
        samples = self.samples if temperature > 0 else 1
        return Decoding(samples, temperature, 1.0, self.max_new_tokens, self.max_length)

    def _cases(
        self, question: Example, systems: Sequence[Answers], references: Mapping[str, tuple[str, ...]]
    ) -> list[Case]:
        reference = references.get(question.id, ()) if question.category in self.guided else ()
        return [
            Case(question, turn, tuple(texts[: turn + 1] for texts in answers), reference[: turn + 1], sample)
            for sample in range(self.samples)
            if (answers := [system[question.id, sample] for system in systems if (question.id, sample) in system])
            for turn in range(len(question.turns))
        ]

    def _grade(self, folder: Path, name: str, cases: Sequence[Case], subject: Subject) -> dict[str, Any]:
        with self.judge.open(subject.context) as judge:
            judgments, counts = judge(cases), unread(judge, cases)
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
            for case, judgment in zip(cases, judgments, strict=True)
        ]
        pd.DataFrame(rows).astype({"rating": "float64"}).to_parquet(folder / JUDGMENTS)
        return summarize_judgments(name, self.judge, judgments, self.min_coverage, counts)


def _parts(name: str, frame: pd.DataFrame, value: str, kind: str, options: Options) -> list[Line]:
    """Return the means by turn and by category."""
    lines = []
    for turn in sorted(set(frame["turn"])):
        lines.append(Line(name, f"turn {turn + 1}", kind, _mean(frame[frame["turn"] == turn], value, options)))
    for category in sorted(set(frame["category"]) - {""}):
        part = frame[frame["category"] == category]
        lines.append(Line(name, f"{CATEGORY}{category}", kind, _mean(part, value, options)))
    return lines


def _mean(frame: pd.DataFrame, value: str, options: Options) -> Interval:
    """Average over questions and turns. All questions weigh the same; their number of samples does not matter."""
    by_turn = frame.groupby(["id", "turn"], as_index=False)[value].mean()
    if value == "outcome":
        return rate_interval(by_turn[value], by_turn["id"], confidence=options.confidence)
    return mean_interval(by_turn[value], by_turn["id"], **vars(options))


def _difference(system: pd.DataFrame, base: pd.DataFrame, options: Options) -> Interval:
    # Paired by question and turn: a turn that lacks one of the two judgments is left out.
    paired = system.groupby(["id", "turn"])["rating"].mean().to_frame("system")
    paired = paired.join(base.groupby(["id", "turn"])["rating"].mean().rename("base"), how="inner").reset_index()
    return paired_difference(paired["system"], paired["base"], paired["id"], **vars(options))
