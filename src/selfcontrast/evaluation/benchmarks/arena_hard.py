"""Arena-Hard-v2.0 (arXiv 2406.11939): compare answers with a baseline's answers, with verdicts of five degrees.

The file format, the verdicts, their weights and the baseline of each category are those of
github.com/lmarena/arena-hard-auto (Apache-2.0). The wording of the judge's prompt differs: it asks for the same
verdict, and fences the answers as all prompts of this project do. The interval differs too: Arena-Hard resamples games,
two of each prompt, and this project resamples prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfcontrast.constrained import Text
from selfcontrast.data.example import Example, Verifier
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.answers import AnswerRequest
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options, Subject, answers_of
from selfcontrast.evaluation.benchmarks.judge_benchmark import QuestionBenchmark, file_hash
from selfcontrast.evaluation.benchmarks.pairs import both_orders, judge_pairs, pair_lines
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.judges.prompts import FIVE_GRADED, templates_hash
from selfcontrast.evaluation.rows import object_rows, text_of
from selfcontrast.evaluation.statistics import mean_interval

WORDING, CREATIVE = FIVE_GRADED
CREATIVE_CATEGORY = "creative_writing"  # in this category the judge does not write its own answer first
STRONG_WEIGHT = 3  # a verdict of [[A>>B]] or [[B>>A]] counts as this many games


def files_hash(paths: Mapping[str, str]) -> dict[str, str | None]:
    """Hash the content of each category's file."""
    return {category: file_hash(path) for category, path in paths.items()}


@dataclass(frozen=True, kw_only=True)
class ArenaHard(QuestionBenchmark):
    """Compare answers to the prompts of Arena-Hard's release with the baselines' answers, in both orders.

    Attributes:
        questions: the release's file question.jsonl, with rows {uid, category, subcategory, prompt}.
        baselines: by category, the baseline's file, with rows {uid, model, messages}. Prompts of other categories are
            left out.
    """

    questions: Text = field(metadata={"in_key_as": file_hash})
    baselines: dict[Text, Text] = field(metadata={"in_key_as": files_hash})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.baselines:
            raise UserError("baselines={}: no baseline. Name a file of answers per category: {hard_prompt: FILE}")

    @property
    def file(self) -> str | None:
        return self.questions

    @property
    def files(self) -> list[str]:
        return [self.questions, *self.baselines.values()]

    def read(self) -> None:
        _ = self._examples

    def check(self, verifier: Verifier | None) -> None:
        super().check(verifier)
        if getattr(self.judge, "verdict", None) == "logprob":
            raise UserError("judge.verdict=logprob cannot weigh five verdicts. Use judge.verdict=text.")

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "wordings": templates_hash(FIVE_GRADED)}

    def own_prompts(self) -> dict[str, str]:
        return {example.id: example.prompt[0]["content"] for example in self._examples}

    def answer_request(self, examples: Sequence[Example]) -> AnswerRequest | None:
        return AnswerRequest([(self.decoding, self._examples)], self.seed)

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        answers = answers_of(subject.scores, subject.decoding)
        pairs = [
            Case(
                example,
                0,
                (answers[example.id, 0], (example.target,)),
                wording=CREATIVE if example.category == CREATIVE_CATEGORY else WORDING,
            )
            for example in self._examples
        ]
        return judge_pairs(folder, f"arena_hard {subject.label}", self.judge, pairs, subject, self.min_coverage)

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """Return each system's score, overall and by category, and the lines of `pair_lines`.

        As in the release, the score is the mean over games, and a strong verdict counts as three games. The interval
        covers the variation over prompts.
        """
        frames = {name: both_orders(pd.read_parquet(folder / JUDGMENTS)) for name, folder in folders.items()}
        lines = []
        for name, pairs in frames.items():
            if not len(pairs):
                continue
            parts = {"score against the baseline": pairs}
            parts |= {f"category {category}": part for category, part in pairs.groupby("category")}
            lines += [Line(name, what, "share", _score(part, options)) for what, part in parts.items()]
        sides = {name: _sides(pairs) for name, pairs in frames.items()}
        return [*lines, *pair_lines(sides, "the baseline", options)]

    @cached_property
    def _examples(self) -> list[Example]:
        """The prompts, with the baseline's answers as targets, stripped of outer white space as a policy's are."""
        examples = []
        answers = {category: read_answers(path) for category, path in self.baselines.items()}
        for where, row in object_rows(self.questions, "questions"):
            uid, category, prompt = (text_of(row, name, where) for name in ("uid", "category", "prompt"))
            if category not in answers:
                continue
            if uid not in answers[category]:
                raise UserError(f"baselines.{category}={self.baselines[category]}: no answer to prompt {uid}. Add one.")
            examples.append(
                Example(uid, [{"role": "user", "content": prompt}], answers[category][uid].strip(), category=category)
            )
        if len({example.id for example in examples}) < len(examples):
            raise UserError(f"{self.questions}: a uid occurs twice. Keep one prompt per uid.")
        if missing := sorted(set(answers) - {example.category for example in examples}):
            raise UserError(f"baselines.{missing[0]}: {self.questions} has no prompt of this category. Remove it.")
        return examples[: self.limit]


def read_answers(path: str) -> dict[str, str]:
    """Read a model's answers by uid from a file in the release's format: {uid, messages: [..., {content: {answer}}]}.

    For a row in another format, raise a `UserError` that names the row.
    """
    answers = {}
    for where, row in object_rows(path, "baselines"):
        try:
            content = row["messages"][-1]["content"]
            answer = text_of(content, "answer", where) if isinstance(content, dict) else content
            answers[text_of(row, "uid", where)] = answer
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{where}: no answer in Arena-Hard's format. It needs uid and messages.") from error
        if not isinstance(answer, str):
            raise UserError(f"{where}: the last message's content must be a text, or {{answer: text}}")
    return answers


def _sides(pairs: pd.DataFrame) -> pd.DataFrame:
    """Reduce five degrees to three: win, tie, loss. A panel's mean may lie between them."""
    sides = {order: (2 * pairs[order] - 0.5).clip(0, 1) for order in ("first", "second")}
    return pairs.assign(**sides, outcome=(sides["first"] + sides["second"]) / 2)


def _score(pairs: pd.DataFrame, options: Options) -> Any:
    """Average over games. A value nearer to a strong verdict than to a slight one counts as `STRONG_WEIGHT` games."""
    values = np.concatenate([pairs["first"], pairs["second"]])
    ids = np.concatenate([pairs["id"], pairs["id"]])
    weights = np.where(np.abs(values - 0.5) > 0.375, STRONG_WEIGHT, 1)
    games = np.repeat(np.clip(2 * values - 0.5, 0, 1), weights)
    return mean_interval(games, np.repeat(ids, weights), **vars(options))
