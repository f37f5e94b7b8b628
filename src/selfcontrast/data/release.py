"""Read the data published by the paper's authors, from a local folder.

The reference implementation's README has the link. Layout and columns are those that the implementation reads
(data/dataset_info.json, scripts/HH-RLHF/Test.sh, src/inference_valid.py). Each data set has one folder of pairs per
method and K, and one file with the prompts of the evaluation. A row of pairs has `instruction`, `history` and
`output` = [chosen, rejected].
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
from selfcontrast.data.rows import DUPLICATE, ReadOptions, key_of_content, read_examples, reasons
from selfcontrast.errors import UserError
from selfcontrast.store import NOT_IN_KEY
from selfcontrast.store.content import Content

VERSION = 2
"""Raise it if the same files and settings give other examples."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """One data set of the release. K pairs with the same prompt and target become one example.

    Attributes:
        root: the downloaded folder (`data` in the reference implementation).
        dataset: the data set's folder.
        rows: folder of the training rows, in the data set's folder.
        test: file of the evaluation prompts, in the data set's folder.
        validation: fraction of the training prompts, in (0, 1).
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
        train = self._read("rows", read_folder(str(self._path("rows")), "data.rows"))
        test = self._read("test", read_rows(str(self._path("test")), "data.test"))
        for name, content in contents.items():
            content.check(f"data.{name}")
        return split_off(train, test, self.validation)

    def fingerprint(self) -> dict[str, Any]:
        contents: dict[str, Content] = vars(self).get("_noted") or self._contents()
        hashes = {name: content.hash for name, content in contents.items()}
        return {"source": "release", "version": VERSION, **hashes, "validation": self.validation}

    def _contents(self) -> dict[str, Content]:
        """Return the current content of `rows` and `test`."""
        return {name: Content.of(self._path(name)) for name in ("rows", "test")}

    def _path(self, name: str) -> Path:
        path = Path(self.root, self.dataset, getattr(self, name))
        if not path.exists():
            raise UserError(
                f"data.{name}={getattr(self, name)}: {path} does not exist. "
                "Download the authors' data (docs/reproduction.md) and set data.root to its folder."
            )
        return path

    def _read(self, name: str, rows: Iterator[tuple[str, Any]]) -> list[Example]:
        where, dropped = f"data.{name} ({self._path(name)})", Counter[str]()
        dialogues = ((location, _dialogue(row)) for location, row in rows)
        examples = read_examples(dialogues, where, dropped, ReadOptions(lenient=True))
        pairs = dropped.pop(DUPLICATE, 0) + sum(len(example.more_rejected) for example in examples)
        log.info("%s: %d examples, with %d further pairs", where, len(examples), pairs)
        if dropped:
            log.warning("%s: dropped %d rows (%s)", where, dropped.total(), reasons(dropped))
        if len({key_of_content(example.prompt) for example in examples}) < MIN_PROMPTS:
            raise UserError(
                f"{where}: fewer than {MIN_PROMPTS} different prompts in {len(examples)} usable rows. Use other rows."
            )
        return examples


def _dialogue(row: Any) -> Any:
    """Convert a row of Nectar's evaluation file, with a dialogue string and a `target`, to a row of Nectar.

    Rows of any other form are returned unchanged.
    """
    if not isinstance(row, dict) or "answers" in row or "target" not in row:
        return row
    if not str(row.get("prompt")).lstrip().startswith("Human:"):
        return row
    return {"prompt": row["prompt"], "answers": [{"answer": row["target"], "rank": 1}]}
