"""A judge that says again what is on record: FastChat's files of judgments, or ours, by path."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Text
from selfcontrast.data.example import Verifier
from selfcontrast.data.jsonl import read_rows
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.judgment import Case, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.verdicts import read_verdict
from selfcontrast.store import fields_of

Place = tuple[str, int, int, bool]  # question, turn from 0, sample, swapped


@dataclass(frozen=True)
class ReplayJudge:
    """Replies on record, read as a judge's are.

    Rows of FastChat's: question_id, turn (from 1), model, judgment; of a comparison model_1, model_2, g1_judgment
    (model_1 shown first) and g2_judgment. A `sample` may be given.

    Attributes:
        model: whose answers the recorded judgments are about.
        against: the other model's name, for comparisons; None for grades.
    """

    path: Text
    model: Text
    against: Text | None

    def check(self, verifier: Verifier | None) -> None:
        """Raises `UserError` for a judgment that stands twice with different words: two sets of answers were mixed."""
        self._replies()

    def fingerprint(self) -> dict[str, Any]:
        own = {name: value for name, value in fields_of(self).items() if name != "path"}
        return {**own, "file": hashlib.sha256(Path(self.path).read_bytes()).hexdigest()}

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return None

    @contextmanager
    def open(self, surroundings: JudgeContext) -> Iterator[Judging]:
        replies = self._replies()

        def judging(cases: Sequence[Case]) -> list[Judgment]:
            return [self._judgment(replies, case) for case in cases]

        yield judging

    def _judgment(self, replies: dict[Place, str], case: Case) -> Judgment:
        reply = replies.get((case.example.id, case.turn, case.sample, case.swapped))
        if reply is None:
            return Judgment("api_error", None, "not on record")
        return read_verdict(reply, case.pairwise, case.wording is not None)

    def _replies(self) -> dict[Place, str]:
        found: dict[Place, str] = {}
        models = set()
        twice = set()
        for where, row in read_rows(self.path, "judge.path"):
            try:
                models |= {str(row[name]) for name in ("model", "model_1", "model_2") if name in row}
                for place, reply in self._of_row(row):
                    if found.setdefault(place, reply) != reply:
                        twice.add(place)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{self.path}, {where}: no judgment of FastChat's format ({error!r})") from error
        if twice:
            question, turn, *_ = min(twice)
            raise UserError(
                f"{self.path}: {len(twice)} judgments of {self.model} stand twice with different words, such as "
                f"question {question}, turn {turn + 1}: two sets of answers were mixed; keep one of each"
            )
        if not found:
            raise UserError(f"judge.model={self.model}: {self.path} holds {', '.join(sorted(models)) or 'no model'}")
        return found

    def _of_row(self, row: dict[str, Any]) -> Iterator[tuple[Place, str]]:
        place = (str(row["question_id"]), int(row["turn"]) - 1, int(row.get("sample", 0)))
        if self.against is None:
            if row.get("model") == self.model:
                yield (*place, False), str(row["judgment"])
            return
        names = (row.get("model_1"), row.get("model_2"))
        if set(names) == {self.model, self.against}:
            first = names[0] == self.model
            yield (*place, not first), str(row["g1_judgment"])
            yield (*place, first), str(row["g2_judgment"])
