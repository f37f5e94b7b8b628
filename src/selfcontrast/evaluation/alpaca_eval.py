"""Read AlpacaEval's files of model outputs.

A file is a JSON array or JSON Lines, with or without .gz. Rows are matched by the instruction's text, never by
position: if a model lacks some instructions, equal positions hold answers to different instructions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.evaluation.rows import object_rows, text_of


@dataclass(frozen=True)
class Output:
    """A model's output for an instruction, with the instruction's difficulty if the file has it."""

    instruction: str
    output: str
    generator: str
    difficulty: float | None = None


def read_outputs(path: str, key: str) -> dict[str, Output]:
    """Read a model's outputs, by instruction. Error messages name `key`, the config key of the path.

    Raises `UserError` for an unusable file or row, and for an instruction that occurs twice.
    """
    outputs: dict[str, Output] = {}
    for where, row in object_rows(path, key):
        difficulty = None if row.get("instruction_difficulty") is None else _difficulty(row, where)
        texts = text_of(row, "instruction", where), text_of(row, "output", where)
        output = Output(*texts, str(row.get("generator") or ""), difficulty)
        if output.instruction in outputs:
            raise UserError(f"{where}: this instruction occurs twice. Keep one output per instruction.")
        outputs[output.instruction] = output
    return outputs


def _difficulty(row: Mapping[str, Any], where: str) -> float:
    value = row.get("instruction_difficulty")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: 'instruction_difficulty' must be a number, not {value!r}")
    return float(value)
