"""The embed stage: encode every distinct text once and store the vectors in the candidates' order.

Because of that order the filter stage needs no lookups: it streams candidates and vectors side by side, a few prompts
at a time. Vectors are stored in float16, in Arrow's file format, which halves the space. The rounding changes a vector
by less than 2^-11 of its length, and a cosine by less than 2^-10.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from selfcontrast.engines.work import Engine, Shard, Worker, cut, read_table
from selfcontrast.errors import UserError
from selfcontrast.filters.encode import Embeddings, Encoder, unit
from selfcontrast.models.truncation import Counts, report_unread, unread
from selfcontrast.store import RESUME

VERSION = 5
TARGETS, CANDIDATES = "targets.arrow", "candidates.arrow"
ROWS = 4096  # rows per block of a file; blocks are read as a whole

Float16s = NDArray[np.float16]
Rows = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class EmbedTask:
    """The engine's task of embedding texts."""

    encoder: Encoder

    @contextmanager
    def open(self, device: str) -> Iterator[Worker]:
        with self.encoder.open(device) as encode:
            yield lambda texts: _table(encode(texts).astype(np.float16), unread(encode, texts))


def embed(
    folder: Path, encoder: Encoder, engine: Engine, prompts: Iterable[tuple[str, Sequence[str]]], device: str
) -> dict[str, Any]:
    """Write the vectors of all targets and candidates to `folder`.

    Args:
        prompts: target and candidate texts per prompt, in the order of the candidates' file.

    Returns:
        Counts for the stage's summary.
    """
    row_of: dict[str, int] = {}  # index of each distinct text, in order of appearance
    targets, candidates = array("q"), array("q")
    for target, texts in prompts:
        targets.append(row_of.setdefault(target, len(row_of)))
        candidates.extend(row_of.setdefault(text, len(row_of)) for text in texts)
    by_length = sorted(row_of, key=lambda text: (len(text), text))  # so that a shard's texts have similar lengths
    position = np.empty(len(by_length), dtype=np.int64)  # position of each distinct text in the shards
    position[[row_of[text] for text in by_length]] = np.arange(len(by_length))
    shards = cut(by_length, engine.texts_per_shard, folder / RESUME, str)
    engine.run(EmbedTask(encoder), shards, device, "embed", "text")
    vectors, counts = _joined(shards, folder / RESUME / "joined")
    hashes = hashes_of(by_length)
    for rows, file in ((targets, TARGETS), (candidates, CANDIDATES)):
        _write(folder / file, vectors, hashes, position[np.frombuffer(rows, dtype=np.int64)] if rows else position[:0])
    total = len(targets) + len(candidates)
    truncation = report_unread("embed", counts, "tokens", "raise encoder.max_tokens, or use encoder.long_texts=windows")
    return {"texts": total, "distinct": len(by_length), "dimensions": vectors.shape[1], **truncation}


def _table(vectors: Float16s, counts: Counts) -> pa.Table:
    return pa.table({"embedding": _column(vectors), "tokens": counts[:, 0], "unread": counts[:, 1]})


def _joined(shards: Sequence[Shard], scratch: Path) -> tuple[Float16s, Counts]:
    """Return all shards' vectors [distinct texts, d] and token counts.

    The vectors are memory-mapped from a scratch file: a million of them need not fit into memory.
    """
    width = read_table(shards[0].file).schema.field("embedding").type.list_size
    joined: Float16s = np.memmap(scratch, dtype=np.float16, mode="w+", shape=(sum(s.weight for s in shards), width))
    begin, counts = 0, []
    for shard in shards:
        table = read_table(shard.file)
        vectors = _matrix(table["embedding"].combine_chunks())
        joined[begin : begin + len(vectors)] = vectors
        begin += len(vectors)
        counts.append(np.stack([table[name].to_numpy() for name in ("tokens", "unread")], axis=1))
    return joined, np.concatenate(counts)


def hashes_of(texts: Sequence[str]) -> Hashes:
    """Return a hash per text [n], stored with each vector to detect a mismatch."""
    return np.array([xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass")) for text in texts], dtype=np.uint64)


def _write(file: Path, vectors: Float16s, hashes: Hashes, rows: Rows) -> None:
    """Write the vectors at these rows with their texts' hashes, in blocks of `ROWS`."""
    schema = pa.schema({"embedding": pa.list_(pa.float16(), vectors.shape[1]), "text": pa.uint64()})
    with pa.ipc.new_file(str(file), schema) as writer:
        for begin in range(0, len(rows), ROWS):
            block = rows[begin : begin + ROWS]
            writer.write_batch(pa.record_batch([_column(vectors[block]), pa.array(hashes[block])], schema=schema))


class Vectors:
    """Unit vectors in a file written by `embed`. `vectors[a:b]` reads only the blocks that hold these rows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._reader = pa.ipc.open_file(pa.OSFile(str(file)))

    def __len__(self) -> int:
        last = self._reader.num_record_batches - 1
        return last * ROWS + self._reader.get_batch(last).num_rows if last >= 0 else 0

    def __getitem__(self, rows: slice) -> Embeddings:
        """Return the vectors of a slice of rows, float32 [rows, d]."""
        begin, end = rows.start, rows.stop
        width = self._reader.schema.field("embedding").type.list_size
        if begin >= end:
            return np.empty((0, width), dtype=np.float32)
        blocks = np.concatenate([_matrix(column) for column in self._columns(rows, "embedding")])
        first = begin % ROWS
        return unit(blocks[first : first + end - begin].astype(np.float32))

    def of(self, begin: int, texts: Sequence[str]) -> Embeddings:
        """Return the vectors [n, d] of these texts, which are stored from row `begin` on.

        Raises:
            UserError: if a row holds another text's vector.
        """
        rows = slice(begin, begin + len(texts))
        if texts:
            stored = np.concatenate([column.to_numpy() for column in self._columns(rows, "text")])
            first = begin % ROWS
            if not np.array_equal(stored[first : first + len(texts)], hashes_of(texts)):
                raise UserError(f"{self._file} holds vectors of other texts. Recompute them with recompute=[embed].")
        return self[rows]

    def _columns(self, rows: slice, name: str) -> Iterator[Any]:
        """Yield a column of each block that holds these rows."""
        for block in range(rows.start // ROWS, -(-rows.stop // ROWS)):
            yield self._reader.get_batch(block).column(name)


def _column(vectors: Float16s) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])


def _matrix(column: pa.FixedSizeListArray) -> Float16s:
    """Return a fixed-size list column as an array [n, d]."""
    vectors: Float16s = column.flatten().to_numpy().reshape(len(column), -1)
    return vectors
