"""GSM8K (arXiv 2110.14168): grade-school problems with worked solutions, graded exactly by their final numbers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfcontrast.data.graders import MARK
from selfcontrast.data.hub import Hub, Part

CALCULATION = re.compile(r"<<[^<>]*>>")  # an annotation with a calculator's input and result


@dataclass(frozen=True)
class Gsm8k(Hub):
    """GSM8K's rows: the question is the prompt, the solution is the target, the text after "####" is the answer.

    Rows are read from the hub, or from files at `train.path` and `test.path`, or from a folder `root`. The folder has
    train.jsonl and test.jsonl, as in the authors' repository, or a copy of the hub's data.

    Attributes:
        calculations: keep the calculator annotations in solutions, such as <<48/2=24>>.
    """

    calculations: bool

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "source": "gsm8k", "calculations": self.calculations}

    def _parts(self) -> list[tuple[str, Part]]:
        return [(name, self._with_path(name, part)) for name, part in super()._parts()]

    def _with_path(self, name: str, part: Part) -> Part:
        file = f"{name}.jsonl"
        return replace(part, path=file) if self.root and Path(self.root, file).is_file() else part

    def _rows(self, key: str, part: Part) -> Iterator[tuple[str, Any]]:
        for location, row in super()._rows(key, part):
            yield location, self._as_supervised(row)

    def _as_supervised(self, row: Any) -> Any:
        """Return a row with prompt, target and answer. A row of another form is unchanged; the reader rejects it."""
        if not (isinstance(row, dict) and isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)):
            return row
        solution, _, answer = row["answer"].rpartition(MARK)
        target = row["answer"] if self.calculations else CALCULATION.sub("", row["answer"])
        return {"prompt": row["question"], "target": target, "answer": answer.strip() if solution else ""}
