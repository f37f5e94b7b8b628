"""Define requests to a generator, the candidates that it returns, and the negatives and positives chosen from them."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from selfcontrast.data.example import Message
from selfcontrast.errors import UserError

FAILED, CUT = "failed", "length"  # finish reasons; CUT: the response reached its maximum length
CHOSEN = "chosen.parquet"  # file of the positives in the filter stage's folder, if candidates are among them
TARGET = -1  # sample number of a positive that is the target itself
ROWS_IN_MEMORY = 4096  # rows held as Python objects


@dataclass(frozen=True)
class Decoding:
    """The settings of sampling. Temperature 0 is greedy. `max_length` bounds prompt plus response, in tokens."""

    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    max_length: int

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples={self.samples} is below 1. Raise it.")
        if self.temperature < 0:
            raise UserError(f"temperature={self.temperature} is negative. Use 0 for greedy decoding, or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not in (0, 1]. Use 1 to sample from all tokens.")
        for name in ("max_new_tokens", "max_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is below 1. Raise it.")
        if self.temperature == 0 and self.samples > 1:
            raise UserError(
                f"temperature=0 gives the same response every time, so samples={self.samples} repeats it. "
                "Use samples=1, or raise the temperature."
            )


@dataclass(frozen=True)
class Request:
    """A rendered prompt to sample for. `messages` is the same dialogue, for backends that take text."""

    id: str
    prompt: list[int]
    messages: list[Message] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """A sampled response.

    Attributes:
        finish_reason: "stop" if the response ended by itself, "length" if it was cut, "failed" if the request failed.
            A failed request has a single candidate instead of N. The candidate's `text` is the reason of the failure.
        log_prob: sum over the response's tokens, in nats, at temperature 1; NaN if unknown.
    """

    id: str
    sample: int
    text: str
    token_ids: list[int]
    finish_reason: str
    log_prob: float

    @classmethod
    def failure(cls, id_: str, reason: str) -> "Candidate":
        """Return the candidate that replaces the responses of the failed request `id_`."""
        return cls(id_, -1, reason, [], FAILED, nan)

    @property
    def failed(self) -> bool:
        return self.finish_reason == FAILED


@dataclass(frozen=True)
class Negative:
    """A candidate that was drawn as a negative. A run with K negatives uses the ranks 0 to K - 1.

    Attributes:
        similarity: cosine to the target.
        log_prob: log-probability of the candidate, in nats; NaN if unknown.
        score: score by the verifier or the reward model; NaN without either.
    """

    id: str
    rank: int
    sample: int
    text: str
    token_ids: Sequence[int]
    similarity: float
    log_prob: float = nan
    score: float = nan


@dataclass(frozen=True)
class Positive:
    """A chosen response of a prompt.

    Attributes:
        sample: number of the candidate; `TARGET` for the target.
        token_ids: as sampled; empty for the target, which is rendered when its tokens are needed.
        score: score by the verifier or the reward model; NaN without either, and for the target.
    """

    id: str
    sample: int
    text: str
    token_ids: Sequence[int]
    score: float


POSITIVES = pa.schema(
    [
        ("id", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("score", pa.float32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("log_prob", pa.float64()),
    ]
)


def candidates_table(candidates: Iterable[Candidate]) -> pa.Table:
    return pa.Table.from_pylist([vars(c) for c in candidates], schema=SCHEMA)


def read_candidates(file: Path) -> list[Candidate]:
    return candidates_of(pq.read_table(file))


def candidates_of(table: pa.Table) -> list[Candidate]:
    return [Candidate(**row) for row in table.to_pylist()]


def read_negatives(file: Path, ids: Sequence[str] | None = None) -> dict[str, list[Negative]]:
    """Return the negatives of each example id, in rank order. `ids` selects examples; None reads all.

    Token ids are arrays, because lists of Python integers would take ten times the memory.
    """
    by_id: dict[str, list[Negative]] = defaultdict(list)
    selection = None if ids is None else ds.field("id").isin(list(ids))
    for batch in ds.dataset(file).to_batches(filter=selection, batch_size=ROWS_IN_MEMORY):
        for row in batch.to_pylist():
            by_id[row["id"]].append(Negative(**{**row, "token_ids": array("i", row["token_ids"])}))
    return {id_: sorted(ranked, key=lambda negative: negative.rank) for id_, ranked in by_id.items()}


def read_chosen(folder: Path) -> dict[str, list[Positive]] | None:
    """Return the positives of each example id from a folder of the filter stage.

    None means that the targets are the positives.
    """
    if not (folder / CHOSEN).exists():
        return None
    by_id: dict[str, list[Positive]] = defaultdict(list)
    with pq.ParquetFile(folder / CHOSEN) as file:
        for batch in file.iter_batches(ROWS_IN_MEMORY):
            for row in batch.to_pylist():
                score = nan if row["score"] is None else row["score"]
                by_id[row["id"]].append(Positive(**{**row, "token_ids": array("i", row["token_ids"]), "score": score}))
    return dict(by_id)


def whole_prompts(file: Path, columns: Sequence[str], rows: int = 16384) -> Iterator[pa.Table]:
    """Yield a candidates file as tables of about `rows` rows, without splitting a prompt across two tables.

    Args:
        columns: the columns to read, `id` among them.
    """
    pending = pa.table({})
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(rows, columns=[*columns]):
            new = pa.Table.from_batches([batch])
            table = pa.concat_tables([pending, new]) if pending.num_rows else new
            last_start = pc.index(table["id"], table["id"][-1]).as_py()  # its rows may continue in the next batch
            if last_start:
                yield table[:last_start]
            pending = table[last_start:]
    if pending.num_rows:
        yield pending


def spans(table: pa.Table) -> Iterator[tuple[str, slice]]:
    """Yield the id of each prompt in a table of `whole_prompts`, and the slice of its rows."""
    runs = pc.run_end_encode(table["id"].combine_chunks())
    begin = 0
    for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield name, slice(begin, end)
        begin = end


def texts_by_prompt(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the id of each prompt and the texts of its candidates, in the file's order."""
    for table in whole_prompts(file, ["id", "text"]):
        texts = table["text"].to_pylist()
        for name, rows in spans(table):
            yield name, texts[rows]
