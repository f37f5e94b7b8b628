"""Stage gather: the candidates of a round and of the rounds before it, a prompt's together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfcontrast.data.candidates import SCHEMA, spans, whole_prompts
from selfcontrast.generators.generate import FILE

VERSION = 1
WRITTEN = 16384  # rows at a time


def gather(folder: Path, before: Path, own: Path, offset: int) -> dict[str, Any]:
    """Write the candidates of two files to `folder/candidates.parquet`, each prompt's of `before` first.

    A prompt that one file alone has is kept. Only some thousand rows are in memory at a time.

    Args:
        before: the candidates of the rounds before.
        own: those of this round, whose prompts are in the same order.
        offset: is added to the numbers of `own`'s samples, so that they are no others'.

    Returns:
        The counts of prompts and responses.
    """
    prompts = responses = 0
    with pq.ParquetWriter(folder / FILE, SCHEMA) as writer:
        held: list[pa.Table] = []
        for table in _merged(before, own, offset):
            held.append(table)
            prompts, responses = prompts + 1, responses + table.num_rows
            if sum(one.num_rows for one in held) >= WRITTEN:
                writer.write_table(pa.concat_tables(held))
                held = []
        if held:
            writer.write_table(pa.concat_tables(held))
    return {"prompts": prompts, "responses": responses}


def _merged(before: Path, own: Path, offset: int) -> Iterator[pa.Table]:
    """One prompt's candidates after another."""
    left, right = _prompts(before, 0), _prompts(own, offset)
    known = set(pq.read_table(before, columns=["id"])["id"].to_pylist())
    waiting = next(right, None)
    for name, table in left:
        while waiting is not None and waiting[0] not in known:
            yield waiting[1]
            waiting = next(right, None)
        if waiting is not None and waiting[0] == name:
            yield pa.concat_tables([table, waiting[1]])
            waiting = next(right, None)
        else:
            yield table
    while waiting is not None:
        assert waiting[0] not in known, "both files have their prompts in one order"
        yield waiting[1]
        waiting = next(right, None)


def _prompts(file: Path, offset: int) -> Iterator[tuple[str, pa.Table]]:
    for table in whole_prompts(file, SCHEMA.names):
        numbers = pc.add(table["sample"], pa.scalar(offset, pa.int32()))
        moved = table.set_column(SCHEMA.get_field_index("sample"), "sample", numbers).cast(SCHEMA)
        for name, rows in spans(moved):
            yield name, moved.slice(rows.start, rows.stop - rows.start)
