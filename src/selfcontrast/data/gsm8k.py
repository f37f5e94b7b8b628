"""GSM8K (arXiv 2110.14168): grade-school problems with worked solutions, whose final numbers can be checked exactly."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfcontrast.data.graders import MARK
from selfcontrast.data.hub import Hub, Part

CALCULATION = re.compile(r"<<[^<>]*>>")  # what a calculator would be asked, beside its result


@dataclass(frozen=True)
class Gsm8k(Hub):
    """A question is the prompt, its solution the target, and what follows "####" the answer.

    Rows come from the hub; from a folder `root` that holds train.jsonl and test.jsonl, as the authors' repository has
    them, or a copy of the hub's; or from single files named by `train.path` and `test.path`.

    Attributes:
        calculations: whether solutions keep the notes to a calculator, <<48/2=24>>.
    """

    calculations: bool

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "source": "gsm8k", "calculations": self.calculations}

    def _parts(self) -> list[tuple[str, Part]]:
        return [(name, self._placed(name, part)) for name, part in super()._parts()]

    def _placed(self, name: str, part: Part) -> Part:
        file = f"{name}.jsonl"
        return replace(part, path=file) if self.root and Path(self.root, file).is_file() else part

    def _rows(self, key: str, part: Part) -> Iterator[tuple[str, Any]]:
        for place, row in super()._rows(key, part):
            yield place, self._as_supervised(row)

    def _as_supervised(self, row: Any) -> Any:
        """A row of prompt, target and answer; one of another kind is left as it is, for the reader to refuse."""
        if not (isinstance(row, dict) and isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)):
            return row
        solution, _, answer = row["answer"].rpartition(MARK)
        target = row["answer"] if self.calculations else CALCULATION.sub("", row["answer"])
        return {"prompt": row["question"], "target": target, "answer": answer.strip() if solution else ""}
