"""The data that the paper's authors publish, from a local folder. The reference implementation's README has the link.

Layout and columns are those that the reference implementation reads (data/dataset_info.json, scripts/HH-RLHF/Test.sh,
src/inference_valid.py): per data set a folder of pairs for each method and K, and a file with the prompts of the
evaluation. A row of pairs has `instruction`, `history` and `output` = [chosen, rejected].
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcontrast.constrained import ProperFraction, Text, check_numbers
from selfcontrast.data.example import Example, Split
from selfcontrast.data.hub import split_off
from selfcontrast.data.jsonl import MIN_PROMPTS, read_folder, read_rows
from selfcontrast.data.rows import DUPLICATE, Reading, key_of_content, read_examples, reasons
from selfcontrast.errors import UserError
from selfcontrast.store import NOT_IN_KEY
from selfcontrast.store.content import Content

VERSION = 2
"""Raise it when the same files and settings would give other examples."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """Read one data set of the release. K pairs of a prompt and its target are one example.

    Attributes:
        root: the folder that the download was put in: `data` there.
        dataset: the data set's folder.
        rows: the folder below it whose rows are trained on.
        test: the file below it with the prompts of the evaluation.
        validation: share of the training prompts, in (0, 1).
    """

    root: Text = field(metadata=NOT_IN_KEY)
    dataset: Text
    rows: Text
    test: Text
    validation: ProperFraction

    def __post_init__(self) -> None:
        check_numbers(self, "data")

    def load(self) -> dict[Split, list[Example]]:
        """Return the three splits. Raises `UserError` for a missing or unusable file, or too few prompts."""
        contents = vars(self)["_noted"] = self._contents()
        train = self._read("rows", read_folder(str(self._place("rows")), "data.rows"))
        test = self._read("test", read_rows(str(self._place("test")), "data.test"))
        for name, content in contents.items():
            content.check(f"data.{name}")
        return split_off(train, test, self.validation)

    def fingerprint(self) -> dict[str, Any]:
        contents: dict[str, Content] = vars(self).get("_noted") or self._contents()
        content = {name: content.hash for name, content in contents.items()}
        return {"source": "release", "version": VERSION, **content, "validation": self.validation}

    def _contents(self) -> dict[str, Content]:
        """What rows and test hold now."""
        return {name: Content.of(self._place(name)) for name in ("rows", "test")}

    def _place(self, name: str) -> Path:
        place = Path(self.root, self.dataset, getattr(self, name))
        if not place.exists():
            raise UserError(
                f"data.{name}={getattr(self, name)}: {place} does not exist. "
                "Download the authors' data (docs/reproduction.md) and set data.root to its folder"
            )
        return place

    def _read(self, name: str, rows: Iterator[tuple[str, Any]]) -> list[Example]:
        where, dropped = f"data.{name} ({self._place(name)})", Counter[str]()
        dialogues = ((at, _dialogue(row)) for at, row in rows)
        examples = read_examples(dialogues, where, dropped, Reading(lenient=True))
        pairs = dropped.pop(DUPLICATE, 0) + sum(len(example.more_rejected) for example in examples)
        log.info("%s: %d examples, %d more pairs of theirs", where, len(examples), pairs)
        if dropped:
            log.warning("%s: dropped %d rows (%s)", where, dropped.total(), reasons(dropped))
        if len({key_of_content(example.prompt) for example in examples}) < MIN_PROMPTS:
            raise UserError(f"{where}: fewer than {MIN_PROMPTS} different prompts in {len(examples)} usable rows")
        return examples


def _dialogue(row: Any) -> Any:
    """Rewrite a row of Nectar's evaluation, whose `prompt` is a dialogue string beside a `target`, as one of Nectar."""
    if not isinstance(row, dict) or "answers" in row or "target" not in row:
        return row
    if not str(row.get("prompt")).lstrip().startswith("Human:"):
        return row
    return {"prompt": row["prompt"], "answers": [{"answer": row["target"], "rank": 1}]}
