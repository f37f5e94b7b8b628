"""Files with a checksum of their own, for state that outlives a process: shards of tables, lines of a ledger.

An artifact's manifest holds the checksums of its files. A working folder has no manifest yet, so a shard has its
checksum in its own footer: one file, written by one rename, and still an ordinary Parquet file.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

_KEY, _EMPTY = b"selfcontrast.xxh3_128", b"0" * 32
SEAL = "sum"  # key of the checksum in a line
_UNSEALED = {
    "key",
    "status",
    "value",
    "reply",
    "prompt_tokens",
    "completion_tokens",
}  # keys of a line that an earlier version wrote, without a checksum


class Damaged(Exception):
    """Raised for a sealed file that differs from what was written. The message says how."""


def write_sealed(file: Path, partial: Path, table: pa.Table) -> None:
    """Write a table to `partial`, and rename it to `file` once it is on disk."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_KEY.decode(): _EMPTY.decode()})
    data = bytearray(sink.getvalue().to_pybytes())
    offset = _checksum_offset(data)
    assert offset is not None
    data[offset : offset + len(_EMPTY)] = _digest(file.name, data).encode()
    with open(partial, "wb") as stream:
        stream.write(data)
    publish(partial, file)


def read_sealed(file: Path, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read a table that `write_sealed` wrote. Raises `Damaged` if any byte, or the file name, has changed."""
    return pq.read_table(pa.BufferReader(_intact(file)), columns=columns, schema=schema)


def check_sealed(file: Path) -> str | None:
    """Return what is wrong with a sealed file; None if it is intact."""
    try:
        _intact(file)
    except Damaged as damage:
        return str(damage)
    return None


def publish(partial: Path, file: Path) -> None:
    """Rename `partial` to `file` atomically, even if the power fails."""
    for source in (partial, None):
        descriptor = os.open(source or file.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if source:
            os.replace(source, file)


def sealed_line(values: Mapping[str, Any]) -> str:
    """Return the values as a line of JSON with their checksum."""
    return json.dumps({**values, SEAL: _line_digest(values)}, ensure_ascii=True)


def append_line(file: Path, line: str) -> None:
    """Append a line to a file, creating the file if needed. The line is on disk when this returns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # The line break comes first, so that a killed process's unfinished line spoils no other line.
    with open(file, "a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
        stream.flush()
        os.fsync(stream.fileno())


def lines_of(file: Path) -> list[str]:
    """Return the lines of a file that are not blank."""
    return [line for line in file.read_bytes().decode("ascii", "replace").split("\n") if line.strip()]


def damaged_lines(file: Path) -> int:
    """Count the lines of a file that have changed since they were written."""
    damaged = 0
    for line in lines_of(file):
        try:
            read_line(line)
        except Damaged:
            damaged += 1
    return damaged


def read_line(line: str) -> dict[str, Any] | None:
    """Return the values of a line; None for an unfinished line that a killed process left.

    Lines of earlier versions have no checksum and are accepted as they are. Raises `Damaged`.
    """
    try:
        values = dict(json.loads(line))
    except (ValueError, TypeError):
        if line.rstrip().endswith("}"):
            raise Damaged("a line is not JSON") from None
        return None
    seal = values.pop(SEAL, None)
    if (seal is None and set(values) != _UNSEALED) or (seal is not None and seal != _line_digest(values)):
        raise Damaged("a line has changed since it was written")
    return values


def _line_digest(values: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())


def _intact(file: Path) -> bytearray:
    try:
        data = bytearray(file.read_bytes())
    except OSError as error:
        raise Damaged(f"{file} cannot be read ({error.strerror})") from error
    offset = _checksum_offset(data)
    if offset is None:
        raise Damaged(f"{file} is incomplete" if data[-4:] != b"PAR1" else f"{file} has no checksum")
    seal, data[offset : offset + len(_EMPTY)] = bytes(data[offset : offset + len(_EMPTY)]), _EMPTY
    if seal != _digest(file.name, data).encode():
        raise Damaged(f"{file} has changed since it was written")
    return data


def _checksum_offset(data: bytearray) -> int | None:
    """Return the checksum's offset: after its key in the footer and one byte each for its type and length."""
    key_offset = data.rfind(_KEY)
    start = key_offset + len(_KEY) + 2
    return start if key_offset >= 0 and len(data) >= start + len(_EMPTY) else None


def _digest(name: str, data: bytearray) -> str:
    """Return the hash of a file's name and bytes. The name is included, so that a swapped shard is detected."""
    digest = xxhash.xxh3_128(name.encode())
    digest.update(data)
    return digest.hexdigest()
