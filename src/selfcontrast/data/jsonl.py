"""Read the user's own supervised data: one JSON, JSON Lines or Parquet file, split by prompt."""

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
from selfcontrast.data.rows import ReadOptions, key_of_content, read_examples, reasons
from selfcontrast.errors import UserError
from selfcontrast.store.content import Content, note, noted

VERSION = 2  # raise it if the same file and settings give other examples
MIN_PROMPTS = 8
SETTING = "data.path"
MAX_RATIO = 200  # gzip's compression ratio: text has 3 to 20, a decompression bomb about 1000
ANY_RATIO = 2**24  # up to this many decompressed bytes, any ratio is accepted
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Jsonl:
    """A file of supervised rows. The first row's columns decide their format (`formats.FORMATS`).

    Rows with the same prompt are in the same split (see `split_by_prompt`). Rows with the same prompt and target
    become one example with all their rejected answers; exact duplicates are dropped. The example's id is the row's
    `id`; without that column, it is a hash of prompt and target.

    Attributes:
        path: a file .json (one array), .jsonl, .json.gz, .jsonl.gz or .parquet.
        validation: fraction of the prompts, in (0, 1).
        test: fraction of the prompts, in (0, 1). The sum with `validation` is below 1.
        limit: number of usable rows to read; None for all.
        answer_column: column with the text or number that a verifier compares responses with; None for no column.
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
                f"data.validation={self.validation} and data.test={self.test} must be above 0, and their sum below 1. "
                "Use 0.1 for each."
            )
        if self.limit is not None and self.limit < MIN_PROMPTS:
            raise UserError(f"data.limit={self.limit} is below {MIN_PROMPTS}. Raise it, or use null for all rows.")

    def load(self) -> dict[Split, list[Example]]:
        """Return the three splits, each in the file's order and none empty.

        Raises `UserError` for an unusable file, for an unusable row (with its number, from 1), and for fewer than 8
        different prompts.
        """
        dropped: Counter[str] = Counter()
        content = note(self, rows_file(self.path, SETTING))
        locations = vars(self)["_locations"] = dict[str, str]()
        options = ReadOptions(self.limit, answer_column=self.answer_column, optional=self.targets == "optional")
        examples = read_examples(read_rows(self.path), self.path, dropped, options, locations)
        content.check(SETTING)
        if dropped:
            counts = (self.path, len(examples), dropped.total(), reasons(dropped))
            log.warning("%s: kept %d rows, dropped %d (%s)", *counts)
        if len({key_of_content(example.prompt) for example in examples}) < MIN_PROMPTS:
            raise UserError(
                f"{self.path}: fewer than {MIN_PROMPTS} different prompts in {len(examples)} usable rows"
                f" (dropped: {reasons(dropped) or 'none'}). Use a larger file."
            )
        return split_by_prompt(examples, self.validation, self.test)

    def location_of(self, id_: str) -> str:
        """Return the location of a loaded example's row: "line 3 of FILE"."""
        return f"{vars(self)['_locations'][id_]} of {self.path}"

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings and the hash of the file; if it was loaded, of the loaded content. Leave out the path.

        Raises `UserError` if the file is missing.
        """
        return {
            "source": "jsonl",
            "version": VERSION,
            "validation": self.validation,
            "test": self.test,
            "limit": self.limit,
            "answer_column": self.answer_column,
            **({"targets": self.targets} if self.targets != "required" else {}),
            "sha256": (noted(self) or Content.of(rows_file(self.path, SETTING))).hash,
        }


def split_by_prompt(examples: list[Example], validation: float, test: float) -> dict[Split, list[Example]]:
    """Split by prompt, without a seed: a prompt is in the same split on every machine.

    A prompt's sha256, read as a number u in [0, 1), assigns it to test (u < test), to validation
    (u < test + validation) or to train. So added rows do not move other prompts. If a split would be
    empty, as in a small file, it gets the prompt that is next in the order of u. Needs 3 different prompts.
    """
    uniform = _uniform_of_prompts(examples)
    order = sorted(uniform, key=lambda key: (uniform[key], key))
    count = len(order)
    end_test = min(max(1, sum(u < test for u in uniform.values())), count - 2)
    end_validation = min(max(end_test + 1, sum(u < test + validation for u in uniform.values())), count - 1)
    rank = {key: i for i, key in enumerate(order)}
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples:
        i = rank[key_of_content(example.prompt)]
        splits["test" if i < end_test else "validation" if i < end_validation else "train"].append(example)
    return splits


def hold_out(examples: list[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Return the remaining and the held-out examples. A fraction of the prompts is held out, chosen by hash.

    At least one of several prompts is held out, and at least one remains. A single prompt remains.
    """
    uniform = _uniform_of_prompts(examples)
    order = sorted(uniform, key=lambda key: (uniform[key], key))
    count = min(max(1, sum(u < fraction for u in uniform.values())), len(order) - 1)
    held_keys = set(order[:count])
    is_held_out = [key_of_content(example.prompt) in held_keys for example in examples]
    pairs = list(zip(examples, is_held_out, strict=True))
    return [example for example, held_out in pairs if not held_out], [
        example for example, held_out in pairs if held_out
    ]


def _uniform_of_prompts(examples: list[Example]) -> dict[str, float]:
    """Return each prompt's sha256 as a number in [0, 1)."""
    return {key: int(key[:16], 16) / 2**64 for key in (key_of_content(example.prompt) for example in examples)}


def read_rows(path: str, setting: str = SETTING) -> Iterator[tuple[str, Any]]:
    """Yield every row of the file that `setting` names, with its location ("line 3", "row 3").

    Raises:
        UserError: for a file that cannot be read.
    """
    file = rows_file(path, setting)
    if file.name.endswith(".parquet"):
        return _parquet(file)
    content = _decode(file)
    if not content.strip():
        raise UserError(f"{path}: the file is empty. Name a file with rows.")
    return (_lines if file.name.removesuffix(".gz").endswith(".jsonl") else _array)(path, content)


def read_folder(path: str, setting: str) -> Iterator[tuple[str, Any]]:
    """Yield every row of a file, or of a folder's files in the order of their names, with its location.

    Raises:
        UserError: for a folder without such files, or a file that cannot be read.
    """
    if not Path(path).is_dir():
        yield from read_rows(path, setting)
        return
    files = sorted(file for file in Path(path).iterdir() if file.name.endswith(SUFFIXES))
    if not files:
        raise UserError(
            f"{setting}={path}: no file in this folder ends with {', '.join(SUFFIXES)}. Name another folder."
        )
    for file in files:
        for location, row in read_rows(str(file), setting):
            yield f"{file.name}, {location}", row


def rows_file(path: str, setting: str) -> Path:
    """Return the file of rows that `setting` names. Raise `UserError` if it is not a file of rows."""
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{setting}={path} is a folder. Name one file ({', '.join(SUFFIXES)}).")
    if not file.is_file():
        raise UserError(f"{setting}={path} does not exist. The path is relative to the working directory.")
    if not file.name.endswith(SUFFIXES):
        raise UserError(f"{setting}={path} has an unknown suffix. Use one of {', '.join(SUFFIXES)}.")
    return file


def _decode(file: Path) -> str:
    data = file.read_bytes()
    try:
        data = _decompress(data, file) if file.suffix == ".gz" else data
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not valid UTF-8. Save the file as UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: incomplete or not a gzip file ({error}). Compress it again.") from None


def _decompress(data: bytes, file: Path) -> bytes:
    """Decompress a gzip file. Raise `UserError` for a decompression bomb, before it fills the memory."""
    limit = max(ANY_RATIO, MAX_RATIO * len(data))
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{file}: decompresses to more than {MAX_RATIO} times its size, unlike text. Check the file.")
    return content


def _lines(path: str, content: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): a JSON string may contain U+2028.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_object_with_unique_keys)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not valid JSON ({_describe(error)}). Write one object per line. If the "
                    "file is one array, name it .json."
                ) from None
            yield f"line {number}", row


def _array(path: str, content: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(content, object_pairs_hook=_object_with_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, line {getattr(error, 'lineno', 1)}: not valid JSON ({_describe(error)}). Write one array of "
            "rows. If the file has one object per line, name it .jsonl."
        ) from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: must be one JSON array of rows, not {type(rows).__name__}. Put the rows into [ ].")
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _object_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raise `ValueError` for a repeated key, of which Python would keep only the last value."""
    row = dict(pairs)
    if len(row) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} is repeated in an object")
    return row


def _describe(error: ValueError | RecursionError) -> str:
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
        raise UserError(
            f"{file}, row {number + 1}: not readable as Parquet ({' '.join(str(error).split())}). Write the file again."
        ) from None
