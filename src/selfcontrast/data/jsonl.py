"""The user's own supervised data: one JSON, JSON Lines or Parquet file, split by prompt."""

import gzip
import io
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfcontrast.constrained import Count, ProperFraction, Text
from selfcontrast.data.example import Example, Split
from selfcontrast.data.rows import Reading, key_of_content, read_examples, reasons
from selfcontrast.errors import UserError
from selfcontrast.store.content import Content, note, noted

VERSION = 2  # raise it when the same file and settings would give other examples
MIN_PROMPTS = 8
SETTING = "data.path"
LARGEST_RATIO = 200  # of a gzip file: text has 3 to 20, and a bomb about 1000
SMALL = 2**24  # bytes that may be of any ratio
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Jsonl:
    """A file of supervised rows; their format is recognised from the first row's columns (`formats.FORMATS`).

    Rows with one prompt share a split, decided by a hash of the prompt (see `split_by_prompt`). Rows with one prompt
    and target are one example, with all their rejected answers; an exact duplicate is dropped. An id is the row's own
    `id`, else a hash of prompt and target.

    Attributes:
        path: .json (one array), .jsonl, either of them with .gz, or .parquet.
        validation: share of the prompts, in (0, 1).
        test: share of the prompts, in (0, 1); with `validation` below 1.
        limit: the first rows that are usable; None is all.
        answer_column: a text or a number that a verifier compares responses with; None where there is none.
        targets: "optional": a row without an answer is an example without target; "required": it is an error.
    """

    path: Text
    validation: ProperFraction
    test: ProperFraction
    limit: Count | None
    answer_column: Text | None
    targets: Literal["required", "optional"]

    def __post_init__(self) -> None:
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise UserError(
                f"data.validation={self.validation} and data.test={self.test} must be above 0, in sum below 1"
            )
        if self.limit is not None and self.limit < MIN_PROMPTS:
            raise UserError(f"data.limit={self.limit} must be at least {MIN_PROMPTS}, or null for all rows")

    def load(self) -> dict[Split, list[Example]]:
        """The three splits, each in the file's order and none empty.

        Raises `UserError` for an unusable file or row (counted from 1), and below 8 different prompts.
        """
        dropped: Counter[str] = Counter()
        content = note(self, existing(self.path, SETTING))
        places = vars(self)["_places"] = dict[str, str]()
        how = Reading(self.limit, answer_column=self.answer_column, optional=self.targets == "optional")
        examples = read_examples(read_rows(self.path), self.path, dropped, how, places)
        content.check(SETTING)
        if dropped:
            told = (self.path, len(examples), dropped.total(), reasons(dropped))
            log.warning("%s: kept %d rows, dropped %d (%s)", *told)
        if len({key_of_content(example.prompt) for example in examples}) < MIN_PROMPTS:
            raise UserError(
                f"{self.path}: fewer than {MIN_PROMPTS} different prompts in {len(examples)} usable rows"
                f" (dropped: {reasons(dropped) or 'none'}); give a larger file"
            )
        return split_by_prompt(examples, self.validation, self.test)

    def place_of(self, name: str) -> str:
        """Where the row of an example that was loaded stands: "line 3 of FILE"."""
        return f"{vars(self)['_places'][name]} of {self.path}"

    def fingerprint(self) -> dict[str, Any]:
        """The settings and the bytes that were read, or would be read now; not the path.

        Raises `UserError` where the file is missing.
        """
        return {
            "source": "jsonl",
            "version": VERSION,
            "validation": self.validation,
            "test": self.test,
            "limit": self.limit,
            "answer_column": self.answer_column,
            **({"targets": self.targets} if self.targets != "required" else {}),
            "sha256": (noted(self) or Content.of(existing(self.path, SETTING))).hash,
        }


def split_by_prompt(examples: list[Example], validation: float, test: float) -> dict[Split, list[Example]]:
    """Split by prompt, without a seed: the same prompt lies in the same split on every machine.

    A prompt's sha256, read as a number u in [0, 1), puts it in test (u < test), in validation
    (u < test + validation) or in train, so rows added later move no prompt. Where a split would be empty, as
    in a small file, the prompt next to it in the order of u moves over. Needs 3 different prompts.
    """
    place = _places(examples)
    order = sorted(place, key=lambda key: (place[key], key))
    last = len(order)
    end_test = min(max(1, sum(u < test for u in place.values())), last - 2)
    end_validation = min(max(end_test + 1, sum(u < test + validation for u in place.values())), last - 1)
    rank = {key: i for i, key in enumerate(order)}
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples:
        i = rank[key_of_content(example.prompt)]
        splits["test" if i < end_test else "validation" if i < end_validation else "train"].append(example)
    return splits


def hold_out(examples: list[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """The rest, and the examples of a share of the prompts: of at least one, and not of all. By hash, as above."""
    place = _places(examples)
    order = sorted(place, key=lambda key: (place[key], key))
    count = min(max(1, sum(u < fraction for u in place.values())), len(order) - 1)
    held = set(order[:count])
    chosen = [key_of_content(example.prompt) in held for example in examples]
    pairs = list(zip(examples, chosen, strict=True))
    return [example for example, is_held in pairs if not is_held], [example for example, is_held in pairs if is_held]


def _places(examples: list[Example]) -> dict[str, float]:
    """Per prompt its sha256 as a number in [0, 1)."""
    return {key: int(key[:16], 16) / 2**64 for key in (key_of_content(example.prompt) for example in examples)}


def read_rows(path: str, setting: str = SETTING) -> Iterator[tuple[str, Any]]:
    """Every row of the file that `setting` names, with its place ("line 3", "row 3").

    Raises:
        UserError: for a file that cannot be read.
    """
    file = existing(path, setting)
    if file.name.endswith(".parquet"):
        return _parquet(file)
    content = _decode(file)
    if not content.strip():
        raise UserError(f"{path}: the file is empty")
    return (_lines if file.name.removesuffix(".gz").endswith(".jsonl") else _array)(path, content)


def read_folder(path: str, setting: str) -> Iterator[tuple[str, Any]]:
    """Every row of the files in a folder, in the order of their names, or of a single file; with its place.

    Raises:
        UserError: for a folder without such files, or a file that cannot be read.
    """
    if not Path(path).is_dir():
        yield from read_rows(path, setting)
        return
    files = sorted(file for file in Path(path).iterdir() if file.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"{setting}={path}: no file in this folder ends with {', '.join(SUFFIXES)}")
    for file in files:
        for place, row in read_rows(str(file), setting):
            yield f"{file.name}, {place}", row


def existing(path: str, setting: str) -> Path:
    """The file of rows that `setting` names. Raises `UserError` for anything else."""
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{setting}={path} is a folder; name one file ({', '.join(SUFFIXES)})")
    if not file.is_file():
        raise UserError(f"{setting}={path} does not exist (it is read relative to the working directory)")
    if not file.name.endswith(SUFFIXES):
        raise UserError(f"{setting}={path} has an unknown suffix; use one of {', '.join(SUFFIXES)}")
    return file


def _decode(file: Path) -> str:
    data = file.read_bytes()
    try:
        data = _unpacked(data, file) if file.suffix == ".gz" else data
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not valid UTF-8; save the file as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: not a whole gzip file ({error})") from None


def _unpacked(data: bytes, file: Path) -> bytes:
    """Decompress a gzip file. Raises `UserError` for one of almost nothing but repetitions, before it fills memory."""
    most = max(SMALL, LARGEST_RATIO * len(data))
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        unpacked = stream.read(most + 1)
    if len(unpacked) > most:
        raise UserError(f"{file}: unpacks to more than {LARGEST_RATIO} times its size, as no text does: not read")
    return unpacked


def _lines(path: str, content: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): a string may hold U+2028 as it is.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_unique)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({_fault(error)})") from None
            yield f"line {number}", row


def _array(path: str, content: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        hint = "if it holds one object a line, name it .jsonl"
        raise UserError(
            f"{path}, line {getattr(error, 'lineno', 1)}: not valid JSON ({_fault(error)}); {hint}"
        ) from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: must be one JSON array of rows, not {type(rows).__name__}")
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises `ValueError` for one with a key twice, of which Python would keep the last alone."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return found


def _fault(error: ValueError | RecursionError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}, row {number + 1}: not readable as Parquet ({' '.join(str(error).split())})") from None
