"""Arena-Hard-v2.0 (arXiv 2406.11939): prompts of a file against baselines' answers, with verdicts in five degrees.

The format of the files, the verdicts, their weights and which category has which baseline are those of
github.com/lmarena/arena-hard-auto (Apache-2.0). The wording of the judge's prompt is ours: it asks for the same, and
fences the answers as all our prompts do. So is the interval: theirs resamples games, of which a prompt has two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfcontrast.constrained import Count, Seed, Temperature, Text
from selfcontrast.data.candidates import Decoding
from selfcontrast.data.example import Example, Verifier
from selfcontrast.data.jsonl import read_rows
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.answers import Asking
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options, Subject, answers_of
from selfcontrast.evaluation.benchmarks.judged import Judged, file_hash
from selfcontrast.evaluation.benchmarks.pairs import both_orders, judge_pairs, pair_lines
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.judges.prompts import FIVE_GRADED, templates_hash
from selfcontrast.evaluation.statistics import mean_interval

WORDING, CREATIVE = FIVE_GRADED
CREATIVE_CATEGORY = "creative_writing"  # whose judge writes no answer of its own
STRONG = 3  # as many games as a verdict of [[A>>B]] or [[B>>A]] counts for


def files_hash(paths: Mapping[str, str]) -> dict[str, str | None]:
    return {category: file_hash(path) for category, path in paths.items()}


@dataclass(frozen=True, kw_only=True)
class ArenaHard(Judged):
    """Answers to the release's prompts against its baselines' answers, judged in both orders.

    Attributes:
        questions: question.jsonl of the release: {uid, category, subcategory, prompt}.
        baselines: per category a file of {uid, model, messages}. Prompts of other categories are left out.
        seed: of sampling.
    """

    questions: Text = field(metadata={"in_key_as": file_hash})
    baselines: dict[Text, Text] = field(metadata={"in_key_as": files_hash})
    temperature: Temperature
    max_new_tokens: Count
    max_length: Count
    seed: Seed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.baselines:
            raise UserError("baselines={}: a file of answers for each category, such as {hard_prompt: FILE}")
        _ = self._decoding

    @property
    def _decoding(self) -> Decoding:
        return Decoding(1, self.temperature, 1.0, self.max_new_tokens, self.max_length)

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
            raise UserError("judge.verdict=logprob cannot weigh five verdicts: use judge.verdict=text")

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "wordings": templates_hash(FIVE_GRADED)}

    def own_prompts(self) -> dict[str, str]:
        return {example.id: example.prompt[0]["content"] for example in self._examples}

    def asking(self, examples: Sequence[Example]) -> Asking | None:
        return Asking([(self._decoding, self._examples)], self.seed)

    def run(self, folder: Path, subject: Subject) -> dict[str, Any]:
        own = answers_of(subject.scores, subject.decoding)
        pairs = [
            Case(
                example,
                0,
                (own[example.id, 0], (example.target,)),
                wording=CREATIVE if example.category == CREATIVE_CATEGORY else WORDING,
            )
            for example in self._examples
        ]
        return judge_pairs(folder, f"arena_hard {subject.label}", self.judge, pairs, subject, self.min_coverage)

    def lines(self, folders: Mapping[str, Path], options: Options) -> list[Line]:
        """Per system the score, as the release computes it, also by category; and what is said of all comparisons.

        The score is the mean over games, of which a strong verdict counts as three. Its interval is over prompts.
        """
        frames = {name: both_orders(pd.read_parquet(folder / JUDGMENTS)) for name, folder in folders.items()}
        found = []
        for name, pairs in frames.items():
            if not len(pairs):
                continue
            parts = {"score against the baseline": pairs}
            parts |= {f"category {category}": own for category, own in pairs.groupby("category")}
            found += [Line(name, what, "share", _score(own, options)) for what, own in parts.items()]
        sides = {name: _sides(pairs) for name, pairs in frames.items()}
        return [*found, *pair_lines(sides, "the baseline", options)]

    @cached_property
    def _examples(self) -> list[Example]:
        """The prompts, with the baseline's answer as target: without white space around it, as a policy's have none."""
        found = []
        answers = {category: read_answers(path) for category, path in self.baselines.items()}
        for place, row in _rows(self.questions, "questions"):
            uid, category, prompt = (_text(row, name, place) for name in ("uid", "category", "prompt"))
            if category not in answers:
                continue
            if uid not in answers[category]:
                raise UserError(f"baselines.{category}={self.baselines[category]}: no answer to the prompt {uid}")
            found.append(
                Example(uid, [{"role": "user", "content": prompt}], answers[category][uid].strip(), category=category)
            )
        if len({example.id for example in found}) < len(found):
            raise UserError(f"{self.questions}: a uid stands twice; keep one prompt of each")
        if lacking := sorted(set(answers) - {example.category for example in found}):
            raise UserError(f"baselines.{lacking[0]}: {self.questions} has no prompt of that category")
        return found[: self.limit]


def read_answers(path: str) -> dict[str, str]:
    """By uid a model's answer, from a file of the release's format: {uid, messages: [..., {content: {answer}}]}.

    Raises `UserError` that names the row which is none.
    """
    found = {}
    for place, row in _rows(path, "baselines"):
        try:
            content = row["messages"][-1]["content"]
            found[_text(row, "uid", place)] = _text(content, "answer", place) if isinstance(content, dict) else content
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{place}: no answer of Arena-Hard's format (uid, messages)") from error
        if not isinstance(found[row["uid"]], str):
            raise UserError(f"{place}: the last message's content must be a text, or {{answer: text}}")
    return found


def _rows(path: str, key: str) -> list[tuple[str, dict[str, Any]]]:
    rows = [(f"{path}, {where}", row) for where, row in read_rows(path, key)]
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{place}: a row must be an object with columns, not {type(row).__name__}")
    return rows


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UserError(f"{place}: '{column}' must be a text, not {value!r}")
    return value


def _sides(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs with the sides of their verdicts alone: of five degrees three, of a panel's mean what lies between."""
    sides = {order: (2 * pairs[order] - 0.5).clip(0, 1) for order in ("first", "second")}
    return pairs.assign(**sides, outcome=(sides["first"] + sides["second"]) / 2)


def _score(pairs: pd.DataFrame, options: Options) -> Any:
    """The mean over games. A verdict that is nearer to a strong one than to a slight one counts three times."""
    values = np.concatenate([pairs["first"], pairs["second"]])
    ids = np.concatenate([pairs["id"], pairs["id"]])
    times = np.where(np.abs(values - 0.5) > 0.375, STRONG, 1)
    games = np.repeat(np.clip(2 * values - 0.5, 0, 1), times)
    return mean_interval(games, np.repeat(ids, times), **vars(options))
