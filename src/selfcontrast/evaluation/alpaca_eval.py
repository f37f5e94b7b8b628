"""AlpacaEval's files, by path: model outputs, annotations, instruction difficulties. Joined by instruction.

Files are a JSON array or JSON Lines, also with .gz. Rows are matched by the instruction's text, never by their place:
a model that lacks some instructions would else be compared with the answers to others.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcontrast.data.jsonl import read_rows
from selfcontrast.errors import UserError
from selfcontrast.evaluation.statistics import (
    Interval,
    LengthControlled,
    length_controlled_win_rate,
    rate_interval,
    standard_error,
)


@dataclass(frozen=True)
class Output:
    """A model's answer to an instruction, and how difficult that is, where the file says so."""

    instruction: str
    output: str
    generator: str
    difficulty: float | None = None


@dataclass(frozen=True)
class Annotation:
    """A judgment of a model's answer against the baseline's.

    Attributes:
        preference: how far the judge prefers the model's answer, in [0, 1]: 1 is a win, 0.5 a tie; None where the judge
            gave no verdict. (In the file: from 1 to 2, ties 1.5 or, in older files, 0.)
    """

    instruction: str
    baseline: Output
    model: Output
    preference: float | None

    @property
    def length_difference(self) -> int:
        """In characters, as AlpacaEval counts; above 0 where the model's answer is longer."""
        return len(self.model.output) - len(self.baseline.output)


@dataclass(frozen=True)
class Score:
    """A model's rates of wins over the baseline, in [0, 1].

    Attributes:
        win_rate: as the judge's preferences have it.
        standard_error: of it, over instructions.
        length_controlled: at equal length.
        without_verdict: annotations that no rate counts.
    """

    win_rate: Interval
    standard_error: float
    length_controlled: LengthControlled
    without_verdict: int


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


def read_annotations(path: str, key: str) -> list[Annotation]:
    """Annotations in the file's order; `output_1` is the baseline's and `output_2` the model's. Raises `UserError`."""
    found = []
    for place, row in _rows(path, key):
        instruction = _text(row, "instruction", place)
        baseline, model = (
            Output(instruction, _text(row, f"output_{at}", place), str(row.get(f"generator_{at}") or ""))
            for at in (1, 2)
        )
        found.append(Annotation(instruction, baseline, model, _preference(row, place)))
    return found


def read_difficulties(path: str, key: str) -> dict[str, float]:
    """`instruction_difficulty` by instruction. Raises `UserError`."""
    found = {}
    for place, row in _rows(path, key):
        found[_text(row, "instruction", place)] = _difficulty(row, place)
    return found


def pair_up(
    model: Mapping[str, Output], baseline: Mapping[str, Output]
) -> tuple[list[tuple[Output, Output]], list[str]]:
    """Both answers to each instruction that both have, and the instructions that one of them lacks."""
    both = [(own, baseline[instruction]) for instruction, own in model.items() if instruction in baseline]
    return both, [
        instruction for instruction in {**model, **baseline} if not (instruction in model and instruction in baseline)
    ]


def score(
    annotations: Sequence[Annotation],
    difficulties: Mapping[str, float] | None,
    *,
    level: float,
    resamples: int,
    seed: int,
) -> Score:
    """The rates over the annotations that have a verdict.

    Raises ValueError where none has one, and `UserError` for an instruction whose difficulty is unknown.
    """
    judged = [annotation for annotation in annotations if annotation.preference is not None]
    instructions = [annotation.instruction for annotation in judged]
    if difficulties is not None and (unknown := [i for i in instructions if i not in difficulties]):
        raise UserError(
            f"{len(unknown)} instructions have no difficulty, such as {unknown[0][:60]!r}; give all or none"
        )
    outcomes = [float(annotation.preference or 0.0) for annotation in judged]
    options: Any = {"level": level, "resamples": resamples, "seed": seed}
    return Score(
        win_rate=rate_interval(outcomes, instructions, level=level),
        standard_error=standard_error(outcomes, instructions),
        length_controlled=length_controlled_win_rate(
            outcomes,
            [annotation.length_difference for annotation in judged],
            instructions,
            None if difficulties is None else [difficulties[instruction] for instruction in instructions],
            **options,
        ),
        without_verdict=len(annotations) - len(judged),
    )


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


def _preference(row: Mapping[str, Any], place: str) -> float | None:
    value = row.get("preference")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise UserError(f"{place}: 'preference' must be from 1 to 2, 0 for a tie, or null, not {value!r}")
    return 0.5 if value == 0 else float(value) - 1
