"""The gather stage: merge the candidates of an iteration with those of earlier iterations, prompt by prompt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfcontrast.data.candidates import SCHEMA, spans, whole_prompts
from selfcontrast.generators.generate import FILE

VERSION = 1
ROWS_PER_WRITE = 16384


def gather(folder: Path, before: Path, new: Path, offset: int) -> dict[str, Any]:
    """Write the candidates of two files to `folder/candidates.parquet`; those of `before` come first for each prompt.

    Prompts that are in only one file are kept. Only the ids of `before` and some thousand rows are in memory at a time.

    Args:
        before: candidates of the earlier iterations.
        new: candidates of this iteration, with the prompts in the same order.
        offset: added to the sample numbers of `new`, so that they are unique.

    Returns:
        The counts of prompts and responses.
    """
    prompts = responses = 0
    with pq.ParquetWriter(folder / FILE, SCHEMA) as writer:
        pending: list[pa.Table] = []
        for table in _merge(before, new, offset):
            pending.append(table)
            prompts, responses = prompts + 1, responses + table.num_rows
            if sum(part.num_rows for part in pending) >= ROWS_PER_WRITE:
                writer.write_table(pa.concat_tables(pending))
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending))
    return {"prompts": prompts, "responses": responses}


def _merge(before: Path, new: Path, offset: int) -> Iterator[pa.Table]:
    """Yield the candidates of one prompt after another."""
    earlier, later = _prompts(before, 0), _prompts(new, offset)
    known = set(pq.read_table(before, columns=["id"])["id"].to_pylist())
    pending = next(later, None)
    for name, table in earlier:
        while pending is not None and pending[0] not in known:
            yield pending[1]
            pending = next(later, None)
        if pending is not None and pending[0] == name:
            yield pa.concat_tables([table, pending[1]])
            pending = next(later, None)
        else:
            yield table
    while pending is not None:
        assert pending[0] not in known, "the prompts of both files must be in the same order"
        yield pending[1]
        pending = next(later, None)


def _prompts(file: Path, offset: int) -> Iterator[tuple[str, pa.Table]]:
    for table in whole_prompts(file, SCHEMA.names):
        samples = pc.add(table["sample"], pa.scalar(offset, pa.int32()))
        shifted = table.set_column(SCHEMA.get_field_index("sample"), "sample", samples).cast(SCHEMA)
        for name, rows in spans(shifted):
            yield name, shifted.slice(rows.start, rows.stop - rows.start)
