"""Dialogues of several turns, each answer graded from 1 to 10, as in MT-Bench (Zheng et al. 2023, arXiv 2306.05685)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from selfcontrast.data.candidates import Decoding
from selfcontrast.data.example import Example, Verifier
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.answers import Player
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options, Subject, judged
from selfcontrast.evaluation.benchmarks.questions import Questions, read_questions
from selfcontrast.evaluation.contamination import user_text
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.judges.verifier import VerifierJudge
from selfcontrast.evaluation.statistics import Interval, mean_interval, paired_difference
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.store import NOT_IN_KEY, RESUME, settings_of

SFT = "SFT"
CATEGORY = "category "  # how the names of a category's lines begin
OURS = Path(__file__).parents[4] / "evaluation" / "mt_bench" / "questions.jsonl"


@dataclass(frozen=True)
class MTBench:
    """Attributes:
    judge: a `selfcontrast.evaluation.judges.Judge`.
    questions: a file, or "ours" for the 80 of this project; None for the held-out dialogues of the data.
    references: a file of answers to some of the questions; None for those in `questions`.
    guided: the categories whose answers are graded beside a reference, where there is one.
    limit: the first so many questions; None for all.
    temperature: of the categories that `temperatures` does not name.
    samples: dialogues per question, where the temperature is above 0.
    min_coverage: the share of judgments that must be usable.
    """

    questions: str | None
    references: str | None
    guided: list[str]
    limit: int | None
    temperature: float
    temperatures: dict[str, float]
    samples: int
    max_new_tokens: int
    max_length: int
    seed: int
    min_coverage: float
    judge: Any = field(metadata=NOT_IN_KEY)  # by its own fingerprint

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit={self.limit}: at least 1 question, or null for all")
        if not 0 < self.min_coverage <= 1:
            raise UserError(f"min_coverage={self.min_coverage}: above 0 and at most 1")
        for value in (self.temperature, *self.temperatures.values()):
            _ = self._decoding(value)

    @property
    def relative(self) -> bool:
        return False

    def check(self, verifier: Verifier | None) -> None:
        if self.questions is not None:
            _ = self._read
            if isinstance(self.judge, VerifierJudge):
                raise UserError("judge=verifier grades the data's own dialogues: name another for a file of questions")
        if verifier or not isinstance(self.judge, VerifierJudge):
            self.judge.check(verifier)

    def left_out(self, examples: Sequence[Example], verifier: Verifier | None) -> str | None:
        if self.questions is not None:
            return None
        if verifier is None and isinstance(self.judge, VerifierJudge):
            return "the data has no verifier"
        return None if any(e.turns for e in examples) else "the data has no dialogues to play"

    def fingerprint(self) -> dict[str, Any]:
        files = [name for name in (self._file, self.references) if name is not None]
        own = {name: value for name, value in settings_of(self).items() if name not in ("questions", "references")}
        hashes = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in files]
        return {**own, "files": hashes, "judge": self.judge.fingerprint()}

    def own_prompts(self) -> dict[str, str]:
        asked = [] if self.questions is None else self._read.examples[: self.limit]
        return {question.id: user_text(question) for question in asked}

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        asked = self._questions(subject)
        answers = self._answers(folder, subject, asked.examples)
        cases = [case for question in asked.examples for case in self._cases(question, answers, asked.references)]
        with self.judge.open(subject.surroundings) as judge:
            found = judge(cases)
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
        facts = judged(f"mt_bench {subject.label}", self.judge, found, self.min_coverage)
        return {"questions": len(asked.examples), "guided": sum(bool(c.references) for c in cases), **facts}

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """Means over all, by turn and by category, and the paired difference from SFT on what both have graded."""
        frames = {name: pd.read_parquet(folder / JUDGMENTS) for name, folder in folders.items()}
        usable = {name: frame[frame["status"] == "ok"] for name, frame in frames.items()}
        found = []
        for name, frame in usable.items():
            found.append(Line(name, "mean", "rating", _mean(frame, options)))
            if name != SFT and SFT in usable:
                found.append(Line(name, "difference from SFT", "difference", _difference(frame, usable[SFT], options)))
            for turn in sorted(set(frame["turn"])):
                found.append(Line(name, f"turn {turn + 1}", "rating", _mean(frame[frame["turn"] == turn], options)))
            for category in sorted(set(frame["category"]) - {""}):
                part = frame[frame["category"] == category]
                found.append(Line(name, f"{CATEGORY}{category}", "rating", _mean(part, options)))
        return found

    @property
    def _file(self) -> str | None:
        return str(OURS) if self.questions == "ours" else self.questions

    @cached_property
    def _read(self) -> Questions:
        assert self._file is not None
        return read_questions(self._file, self.references)

    def _questions(self, subject: Subject) -> Questions:
        read = Questions([e for e in subject.examples if e.turns], {}) if self.questions is None else self._read
        return Questions(read.examples[: self.limit], read.references)

    def _decoding(self, temperature: float) -> Decoding:
        samples = self.samples if temperature > 0 else 1
        return Decoding(samples, temperature, 1.0, self.max_new_tokens, self.max_length)

    def _answers(self, folder: Path, subject: Subject, questions: Sequence[Example]) -> dict[str, dict[int, list[str]]]:
        """By question and sample the answers to its turns."""
        renderer = Renderer(load_tokenizer(subject.model))
        player = Player(subject.responder, subject.model, renderer, self.seed, folder / RESUME)
        by_temperature: dict[float, list[Example]] = {}
        for question in questions:
            value = self.temperatures.get(question.category, self.temperature)
            by_temperature.setdefault(value, []).append(question)
        found: dict[str, dict[int, list[str]]] = {}
        for value, some in by_temperature.items():
            for answer in player.play(some, self._decoding(value), f"{subject.label} mt_bench T={value:g}"):
                found.setdefault(answer.id, {}).setdefault(answer.sample, []).append(answer.text)
        return found

    def _cases(
        self,
        question: Example,
        answers: Mapping[str, Mapping[int, list[str]]],
        references: Mapping[str, tuple[str, ...]],
    ) -> list[Case]:
        right = references.get(question.id, ()) if question.category in self.guided else ()
        return [
            Case(question, turn, (tuple(texts[: turn + 1]),), right[: turn + 1], sample)
            for sample, texts in answers[question.id].items()
            for turn in range(len(question.turns))
        ]


def _mean(frame: pd.DataFrame, options: Options) -> Interval:
    return mean_interval(frame["rating"], frame["id"], **vars(options))


def _difference(own: pd.DataFrame, base: pd.DataFrame, options: Options) -> Interval:
    # By question and turn: where one of the two has lost a turn's judgment, the other's counts for nothing either.
    both = own.groupby(["id", "turn"])["rating"].mean().to_frame("own")
    both = both.join(base.groupby(["id", "turn"])["rating"].mean().rename("base"), how="inner").reset_index()
    return paired_difference(both["own"], both["base"], both["id"], **vars(options))
