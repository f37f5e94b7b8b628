"""What is asked of a generator, what it answers, and which of the answers become negatives."""

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

FAILED, CUT = "failed", "length"  # finish reasons
CHOSEN = "chosen.parquet"  # beside the negatives, where candidates are chosen
TARGET = -1  # in place of a sample's number: the chosen response is the target
READ = 4096  # rows as Python objects at a time


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn. `temperature` 0 is greedy. `max_length` bounds prompt and response together."""

    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    max_length: int

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples={self.samples}: at least 1")
        if self.temperature < 0:
            raise UserError(f"temperature={self.temperature}: 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: above 0 and at most 1")
        if min(self.max_new_tokens, self.max_length) < 1:
            raise UserError("max_new_tokens and max_length: at least 1")
        if self.temperature == 0 and self.samples > 1:
            raise UserError("temperature=0 gives the same response every time: samples must be 1")


@dataclass(frozen=True)
class Request:
    """A rendered prompt to sample for, and the dialogue that it renders, for backends that take text."""

    id: str
    prompt: list[int]
    messages: list[Message] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """A sampled response. `log_prob` is the sum over its tokens, in nats, at temperature 1; NaN where nobody says.

    `finish_reason` is "stop" where the response ended by itself, "length" where it was cut, and "failed" where there
    is none: that one stands for all of its request's, and its `text` says why.
    """

    id: str
    sample: int
    text: str
    token_ids: list[int]
    finish_reason: str
    log_prob: float

    @classmethod
    def failure(cls, name: str, reason: str) -> "Candidate":
        """What stands for the candidates of a request that nothing answers."""
        return cls(name, -1, reason, [], FAILED, nan)

    @property
    def failed(self) -> bool:
        return self.finish_reason == FAILED


@dataclass(frozen=True)
class Negative:
    """A candidate at its place in the nested draw.

    Attributes:
        similarity: its cosine to the target.
        log_prob: as the candidate's; NaN where nobody says.
        score: by the verifier or the reward model; NaN where neither is there.
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
        sample: which of the candidates it is; `TARGET` for the target.
        token_ids: as sampled; none for the target, which is rendered where its tokens are needed.
        score: by the verifier or reward model; NaN where nothing scores, and for the target.
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
    """Per example id its negatives, in rank order: of these ids alone, or (None) of all.

    Tokens come as arrays: as Python's numbers, those of a hundred thousand prompts would take ten times the memory.
    """
    found: dict[str, list[Negative]] = defaultdict(list)
    wanted = None if ids is None else ds.field("id").isin(list(ids))
    for batch in ds.dataset(file).to_batches(filter=wanted, batch_size=READ):
        for row in batch.to_pylist():
            found[row["id"]].append(Negative(**{**row, "token_ids": array("i", row["token_ids"])}))
    return {name: sorted(ranked, key=lambda negative: negative.rank) for name, ranked in found.items()}


def read_chosen(folder: Path) -> dict[str, list[Positive]] | None:
    """Return per example id its chosen responses, of what the stage filter left in a folder; None for the targets."""
    if not (folder / CHOSEN).exists():
        return None
    found: dict[str, list[Positive]] = defaultdict(list)
    with pq.ParquetFile(folder / CHOSEN) as file:
        for batch in file.iter_batches(READ):
            for row in batch.to_pylist():
                score = nan if row["score"] is None else row["score"]
                found[row["id"]].append(Positive(**{**row, "token_ids": array("i", row["token_ids"]), "score": score}))
    return dict(found)


def whole_prompts(file: Path, columns: Sequence[str], rows: int = 16384) -> Iterator[pa.Table]:
    """A candidates file as tables of about `rows` rows that no prompt straddles; `id` is among the columns."""
    held = pa.table({})
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(rows, columns=[*columns]):
            read = pa.Table.from_batches([batch])
            table = pa.concat_tables([held, read]) if held.num_rows else read
            last = pc.index(table["id"], table["id"][-1]).as_py()  # where the last prompt begins: it may go on
            if last:
                yield table[:last]
            held = table[last:]
    if held.num_rows:
        yield held


def spans(table: pa.Table) -> Iterator[tuple[str, slice]]:
    """Each prompt's id and its rows in such a table."""
    runs = pc.run_end_encode(table["id"].combine_chunks())
    begin = 0
    for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield name, slice(begin, end)
        begin = end


def texts_by_prompt(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Each prompt's id and its candidates' texts, in the file's order."""
    for table in whole_prompts(file, ["id", "text"]):
        texts = table["text"].to_pylist()
        for name, rows in spans(table):
            yield name, texts[rows]
