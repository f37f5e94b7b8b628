"""Read published data sets: splits on the hub, or local copies in the same format, with `datasets`.

Rows are parsed like those of the user's own files (`formats.FORMATS`): hh-rlhf's dialogue strings, UltraChat's
messages, Nectar's ranked answers. Unusable rows are dropped and counted by reason.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Count, ProperFraction, Text, check_numbers
from selfcontrast.data.example import Example, Split
from selfcontrast.data.jsonl import MIN_PROMPTS, SUFFIXES, hold_out, read_rows, split_by_prompt
from selfcontrast.data.rows import ReadOptions, key_of_content, read_examples, reasons
from selfcontrast.errors import UserError
from selfcontrast.store import NOT_IN_KEY
from selfcontrast.store.content import Content

VERSION = 3
"""Raise it if the same data and settings give other examples."""

COMMIT = re.compile(r"[0-9a-f]{40}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A split of a data set.

    Attributes:
        path: name on the hub; or a folder in the same format, or a single file as in `data.jsonl.Jsonl`.
        subset: a folder of the data set; None for all folders.
        revision: a full commit on the hub; not used for local files.
        split: name of the split in the data set.
        turns: maximum number of user messages in a prompt; longer dialogues are cut. None for no maximum.
        limit: number of usable rows to read; None for all.
    """

    path: Text
    subset: Text | None
    revision: Text | None
    split: Text
    turns: Count | None
    limit: Count | None

    def __post_init__(self) -> None:
        check_numbers(self, "data")

    def local_path(self, root: str | None) -> Path | None:
        """Return the local file or folder; None for the hub. Raise `UserError` if `root` has no copy."""
        path = Path(root, self.path) if root is not None else Path(self.path)
        if path.exists():
            return path
        if root is not None or self.path.startswith((".", "/", "~")) or self.path.endswith(SUFFIXES):
            raise UserError(f"{path} does not exist. To read {self.path} from the hub, set data.root=null.")
        return None

    def content(self, local: Content | None) -> dict[str, Any]:
        """Return the part's settings, with its name and commit on the hub or the hash of its local files."""
        settings = {name: getattr(self, name) for name in ("subset", "split", "turns", "limit")}
        if local is None:
            return {**settings, "path": self.path, "revision": self.revision}
        return {**settings, "content": local.hash}


@dataclass(frozen=True)
class Hub:
    """A published data set: a part for training, and a part for testing.

    Rows are split by prompt as in `data.jsonl.Jsonl`: all rows of a prompt are in one split, the same on every machine.
    Prompts of the test part are removed from training.

    Attributes:
        train: the part for training, from which validation prompts are held out.
        test: the part for testing; None to hold out training prompts.
        validation: fraction of the training part's prompts, in (0, 1).
        test_fraction: fraction to hold out for testing if `test` is None, in (0, 1).
        answer_column: column with the text or number that a verifier compares responses with; None for no column.
        root: folder with copies, each under its name on the hub; None reads from the hub.
        streaming: read rows while downloading, and store none on disk.
    """

    train: Part
    test: Part | None
    validation: ProperFraction
    test_fraction: ProperFraction
    answer_column: Text | None
    root: Text | None = field(metadata=NOT_IN_KEY)
    streaming: bool = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        if not (self.validation > 0 and self.test_fraction > 0 and self.validation + self.test_fraction < 1):
            raise UserError(
                f"data.validation={self.validation} and data.test_fraction={self.test_fraction}: must be above 0, "
                "and their sum below 1. Use 0.1 for each."
            )
        for name, part in self._parts():
            if part.limit is not None and part.limit < MIN_PROMPTS:
                raise UserError(
                    f"data.{name}.limit={part.limit} is below {MIN_PROMPTS}. Raise it, or use null for all rows."
                )

    def load(self) -> dict[Split, list[Example]]:
        """Return the three splits. Raise `UserError` for an unreadable part, or one with too few usable prompts."""
        contents = vars(self)["_noted"] = self._contents()
        examples = {name: self._read(name, part) for name, part in self._parts()}
        for name, content in contents.items():
            if content:
                content.check(f"data.{name}.path")
        if "test" not in examples:
            return split_by_prompt(examples["train"], self.validation, self.test_fraction)
        return split_off(examples["train"], examples["test"], self.validation)

    def fingerprint(self) -> dict[str, Any]:
        contents = vars(self).get("_noted") or self._contents()
        parts = {name: part.content(contents[name]) for name, part in self._parts()}
        fractions = {"validation": self.validation, "test_fraction": self.test_fraction}
        return {"source": "hub", "version": VERSION, **parts, **fractions, "answer_column": self.answer_column}

    def _contents(self) -> dict[str, Content | None]:
        """Return the current content of each part's copy; None for the hub."""
        paths = {name: part.local_path(self.root) for name, part in self._parts()}
        return {name: Content.of(path) if path else None for name, path in paths.items()}

    def _parts(self) -> list[tuple[str, Part]]:
        return [("train", self.train), *([("test", self.test)] if self.test else [])]

    def _read(self, name: str, part: Part) -> list[Example]:
        dropped: Counter[str] = Counter()
        where = f"data.{name} ({part.path})"
        rows = self._rows(f"data.{name}", part)
        options = ReadOptions(part.limit, part.turns, self.answer_column, lenient=True)
        examples = read_examples(rows, where, dropped, options)
        if dropped:
            log.warning("%s: kept %d rows, dropped %d (%s)", where, len(examples), dropped.total(), reasons(dropped))
        if len({key_of_content(example.prompt) for example in examples}) < MIN_PROMPTS:
            raise UserError(
                f"{where}: fewer than {MIN_PROMPTS} different prompts in {len(examples)} usable rows"
                f" (dropped: {reasons(dropped) or 'none'}). Use a larger part."
            )
        return examples

    def _rows(self, key: str, part: Part) -> Iterator[tuple[str, Any]]:
        path = part.local_path(self.root)
        if path and path.is_file():
            yield from read_rows(str(path), f"{key}.path")
            return
        if path is None and not COMMIT.fullmatch(part.revision or ""):
            raise UserError(
                f"{key}.revision={part.revision} is not a full commit of the hub, so a rerun could read other data. "
                f"Choose one from https://huggingface.co/datasets/{part.path}/commits."
            )
        from datasets import load_dataset

        try:
            rows = load_dataset(
                str(path or part.path),
                data_dir=part.subset,
                revision=None if path else part.revision,
                split=part.split,
                streaming=self.streaming,
            )
            for number, row in enumerate(rows, start=1):
                yield f"row {number}", row
        except Exception as error:  # the hub, the network, the format or the name is at fault
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{key}.path={part.path} cannot be read ({message}). Set data.root=FOLDER to read a local copy."
            ) from error


def split_off(train: list[Example], test: list[Example], validation: float) -> dict[Split, list[Example]]:
    """Remove the test prompts from training, and hold out a fraction of the remaining prompts for validation.

    Raises:
        UserError: if too few training prompts remain.
    """
    test_keys = {key_of_content(example.prompt) for example in test}
    remaining = [example for example in train if key_of_content(example.prompt) not in test_keys]
    if removed := len(train) - len(remaining):
        log.warning("data.train: removed %d rows whose prompt is in data.test", removed)
        if (left := len({key_of_content(example.prompt) for example in remaining})) < MIN_PROMPTS:
            raise UserError(
                f"data.test has nearly all prompts of data.train: {left} remain, and training needs {MIN_PROMPTS}. "
                "Choose another data.test."
            )
    kept, held_out = hold_out(remaining, validation)
    return {"train": kept, "validation": held_out, "test": test}
