"""A judge that replays recorded judgments from a file in FastChat's format."""

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

Key = tuple[str, int, int, bool]  # question, turn from 0, sample, swapped


@dataclass(frozen=True)
class ReplayJudge:
    """A judge whose replies come from a file. Their verdicts are read like those of a model.

    FastChat's rows have question_id, turn (from 1), model and judgment. Rows of a comparison have model_1, model_2,
    g1_judgment (model_1 shown first) and g2_judgment. `sample` is optional.

    Attributes:
        model: the model whose answers were judged.
        against: the other model's name, for comparisons; None for grades.
    """

    path: Text
    model: Text
    against: Text | None

    def check(self, verifier: Verifier | None) -> None:
        """Raise `UserError` if a judgment occurs twice with different replies: the file mixes two sets of answers."""
        self._replies()

    def fingerprint(self) -> dict[str, Any]:
        fields = {name: value for name, value in fields_of(self).items() if name != "path"}
        return {**fields, "file": hashlib.sha256(Path(self.path).read_bytes()).hexdigest()}

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return None

    @contextmanager
    def open(self, context: JudgeContext) -> Iterator[Judging]:
        replies = self._replies()

        def judging(cases: Sequence[Case]) -> list[Judgment]:
            return [self._judgment(replies, case) for case in cases]

        yield judging

    def _judgment(self, replies: dict[Key, str], case: Case) -> Judgment:
        reply = replies.get((case.example.id, case.turn, case.sample, case.swapped))
        if reply is None:
            return Judgment("api_error", None, "not recorded")
        return read_verdict(reply, case.pairwise, case.wording is not None)

    def _replies(self) -> dict[Key, str]:
        replies: dict[Key, str] = {}
        models = set()
        duplicates = set()
        for where, row in read_rows(self.path, "judge.path"):
            try:
                models |= {str(row[name]) for name in ("model", "model_1", "model_2") if name in row}
                for key, reply in self._replies_in(row):
                    if replies.setdefault(key, reply) != reply:
                        duplicates.add(key)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{self.path}, {where}: not a judgment in FastChat's format ({error!r}). Correct or remove the row."
                ) from error
        if duplicates:
            question, turn, *_ = min(duplicates)
            raise UserError(
                f"{self.path}: {len(duplicates)} judgments of {self.model} occur twice with different replies, such as "
                f"question {question}, turn {turn + 1}. Two sets of answers were mixed. Keep one of the two sets."
            )
        if not replies:
            names = ", ".join(sorted(models)) or "no model"
            raise UserError(f"judge.model={self.model}: not in {self.path}, which has {names}. Name one.")
        return replies

    def _replies_in(self, row: dict[str, Any]) -> Iterator[tuple[Key, str]]:
        key = (str(row["question_id"]), int(row["turn"]) - 1, int(row.get("sample", 0)))
        if self.against is None:
            if row.get("model") == self.model:
                yield (*key, False), str(row["judgment"])
            return
        names = (row.get("model_1"), row.get("model_2"))
        if set(names) == {self.model, self.against}:
            first = names[0] == self.model
            yield (*key, not first), str(row["g1_judgment"])
            yield (*key, first), str(row["g2_judgment"])
