"""Read files whose rows are objects with text columns."""

from collections.abc import Iterator, Mapping
from typing import Any

from selfcontrast.data.jsonl import read_rows
from selfcontrast.errors import UserError


def object_rows(path: str, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file, each with its path and row number for error messages.

    Args:
        key: the config key of the path, which error messages name.

    Raises:
        UserError: for an unreadable file, or a row that is not an object.
    """
    for row_name, row in read_rows(path, key):
        where = f"{path}, {row_name}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: a row must be an object with columns, not {type(row).__name__}")
        yield where, row


def text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """Return the text in a column; raise `UserError` for anything else."""
    value = row.get(column)
    if not isinstance(value, str):
        raise UserError(f"{where}: '{column}' must be a text, not {value!r}")
    return value
