"""AlpacaEval's files of model outputs, by path.

Files are a JSON array or JSON Lines, also with .gz. Rows are matched by the instruction's text, never by their place:
a model that lacks some instructions would else be compared with the answers to others.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from selfcontrast.data.jsonl import read_rows
from selfcontrast.errors import UserError


@dataclass(frozen=True)
class Output:
    """A model's answer to an instruction, and how difficult that is, where the file says so."""

    instruction: str
    output: str
    generator: str
    difficulty: float | None = None


def read_outputs(path: str, key: str) -> dict[str, Output]:
    """A model's outputs by instruction. `key` is the config's name of the path.

    Raises `UserError` for a file or row that is unusable, and for an instruction that stands twice.
    """
    found: dict[str, Output] = {}
    for place, row in _rows(path, key):
        difficulty = None if row.get("instruction_difficulty") is None else _difficulty(row, place)
        texts = _text(row, "instruction", place), _text(row, "output", place)
        output = Output(*texts, str(row.get("generator") or ""), difficulty)
        if output.instruction in found:
            raise UserError(f"{place}: the instruction stands twice; keep one output for each")
        found[output.instruction] = output
    return found


def _rows(path: str, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, row in read_rows(path, key):
        if not isinstance(row, dict):
            raise UserError(f"{path}, {place}: a row must be an object with columns, not {type(row).__name__}")
        yield f"{path}, {place}", row


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UserError(f"{place}: '{column}' must be a text, not {value!r}")
    return value


def _difficulty(row: Mapping[str, Any], place: str) -> float:
    value = row.get("instruction_difficulty")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{place}: 'instruction_difficulty' must be a number, not {value!r}")
    return float(value)
