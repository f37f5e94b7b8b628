"""Published data sets: splits of the hub's, or of local copies in the same format, read by `datasets`.

Rows are parsed as a user's own file is (`formats.FORMATS`): hh-rlhf's dialogue strings, UltraChat's messages, Nectar's
ranked answers. What is odd in them is left out and counted by reason.
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
from selfcontrast.data.rows import Reading, key_of_content, read_examples, reasons
from selfcontrast.errors import UserError
from selfcontrast.store import NOT_IN_KEY
from selfcontrast.store.content import Content

VERSION = 3
"""Raise it when the same data and settings would give other examples."""

COMMIT = re.compile(r"[0-9a-f]{40}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A split of a data set.

    Attributes:
        path: name on the hub; or a folder in the same format, or a single file as of `data.jsonl.Jsonl`.
        subset: a folder of the data set, None for all of them.
        revision: a full commit on the hub; of no matter for what lies here.
        split: its name there.
        turns: the most messages of the user in a prompt; longer dialogues are cut to that many. None for any number.
        limit: the first so many usable rows, None for all.
    """

    path: Text
    subset: Text | None
    revision: Text | None
    split: Text
    turns: Count | None
    limit: Count | None

    def __post_init__(self) -> None:
        check_numbers(self, "data")

    def place(self, root: str | None) -> Path | None:
        """Where it lies on this machine; None for the hub. Raises `UserError` where `root` holds no copy."""
        place = Path(root, self.path) if root is not None else Path(self.path)
        if place.exists():
            return place
        if root is not None or self.path.startswith((".", "/", "~")) or self.path.endswith(SUFFIXES):
            raise UserError(f"{place} does not exist: a copy of {self.path}; data.root=null reads it from the hub")
        return None

    def content(self, read: Content | None) -> dict[str, Any]:
        """What decides its rows: a commit, or the content of files, and not where they lie."""
        own = {name: getattr(self, name) for name in ("subset", "split", "turns", "limit")}
        if read is None:
            return {**own, "path": self.path, "revision": self.revision}
        return {**own, "content": read.hash}


@dataclass(frozen=True)
class Hub:
    """A training part, and a part to report on.

    Rows are split by prompt as in `data.jsonl.Jsonl`: every row of a prompt lies in one split, the same on every
    machine. A prompt of the test part is left out of training.

    Attributes:
        train: what validation prompts are held out of, too.
        test: None to hold them out of training prompts.
        validation: share of the training part's prompts, in (0, 1).
        test_fraction: the same for the test, where there is no part for it.
        answer_column: a text or a number that a verifier compares responses with; None where there is none.
        root: a folder with copies, each under its name on the hub; None for the hub itself.
        streaming: rows are read as they are downloaded, and none kept on the disk.
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
                f"data.validation={self.validation} and data.test_fraction={self.test_fraction}: "
                "above 0, in sum below 1"
            )
        for name, part in self._parts():
            if part.limit is not None and part.limit < MIN_PROMPTS:
                raise UserError(f"data.{name}.limit={part.limit}: at least {MIN_PROMPTS}, or null for all rows")

    def load(self) -> dict[Split, list[Example]]:
        """The three splits. Raises `UserError` for a part that cannot be read or holds too few usable prompts."""
        contents = vars(self)["_noted"] = self._contents()
        found = {name: self._read(name, part) for name, part in self._parts()}
        for name, content in contents.items():
            if content:
                content.check(f"data.{name}.path")
        if "test" not in found:
            return split_by_prompt(found["train"], self.validation, self.test_fraction)
        return split_off(found["train"], found["test"], self.validation)

    def fingerprint(self) -> dict[str, Any]:
        contents = vars(self).get("_noted") or self._contents()
        parts = {name: part.content(contents[name]) for name, part in self._parts()}
        shares = {"validation": self.validation, "test_fraction": self.test_fraction}
        return {"source": "hub", "version": VERSION, **parts, **shares, "answer_column": self.answer_column}

    def _contents(self) -> dict[str, Content | None]:
        """Per part what its copy holds now; None for the hub."""
        places = {name: part.place(self.root) for name, part in self._parts()}
        return {name: Content.of(place) if place else None for name, place in places.items()}

    def _parts(self) -> list[tuple[str, Part]]:
        return [("train", self.train), *([("test", self.test)] if self.test else [])]

    def _read(self, name: str, part: Part) -> list[Example]:
        dropped: Counter[str] = Counter()
        where = f"data.{name} ({part.path})"
        rows = self._rows(f"data.{name}", part)
        how = Reading(part.limit, part.turns, self.answer_column, lenient=True)
        examples = read_examples(rows, where, dropped, how)
        if dropped:
            log.warning("%s: kept %d rows, dropped %d (%s)", where, len(examples), dropped.total(), reasons(dropped))
        if len({key_of_content(example.prompt) for example in examples}) < MIN_PROMPTS:
            raise UserError(
                f"{where}: fewer than {MIN_PROMPTS} different prompts in {len(examples)} usable rows"
                f" (dropped: {reasons(dropped) or 'none'})"
            )
        return examples

    def _rows(self, key: str, part: Part) -> Iterator[tuple[str, Any]]:
        place = part.place(self.root)
        if place and place.is_file():
            yield from read_rows(str(place), f"{key}.path")
            return
        if place is None and not COMMIT.fullmatch(part.revision or ""):
            raise UserError(
                f"{key}.revision={part.revision}: the full commit on the hub, so that a rerun is a rerun; "
                f"https://huggingface.co/datasets/{part.path}/commits lists them"
            )
        from datasets import load_dataset

        try:
            rows = load_dataset(
                str(place or part.path),
                data_dir=part.subset,
                revision=None if place else part.revision,
                split=part.split,
                streaming=self.streaming,
            )
            for number, row in enumerate(rows, start=1):
                yield f"row {number}", row
        except Exception as error:  # of the hub, the network, the format, or a name that is none
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{key}.path={part.path}: cannot be read ({first}); data.root=FOLDER reads a copy of it"
            ) from error


def split_off(train: list[Example], test: list[Example], validation: float) -> dict[Split, list[Example]]:
    """Leave prompts of the test out of training, and hold a share of the others out for validation."""
    asked = {key_of_content(example.prompt) for example in test}
    own = [example for example in train if key_of_content(example.prompt) not in asked]
    if leaked := len(train) - len(own):
        log.warning("data.train: %d rows have a prompt of data.test: left out", leaked)
    kept, held = hold_out(own, validation)
    return {"train": kept, "validation": held, "test": test}
