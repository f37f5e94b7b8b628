"""The data stage: write all examples of a job to one file, so that each artifact's lineage begins with the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfcontrast.data.example import Example, Split

VERSION = 3
FILE = "examples.parquet"
SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("id", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("target", pa.string()),
        ("category", pa.string()),
        ("reference", pa.string()),
        ("rejected", pa.string()),
        ("turns", pa.list_(pa.string())),
        ("more_rejected", pa.list_(pa.string())),
        ("answer", pa.string()),
    ]
)


def publish(folder: Path, splits: Mapping[Split, Sequence[Example]]) -> dict[str, Any]:
    """Write `folder/examples.parquet`. Return the number of examples per split."""
    rows = [{"split": split, **example.to_dict()} for split, examples in splits.items() for example in examples]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / FILE, compression="zstd")
    return {split: len(examples) for split, examples in splits.items()}
