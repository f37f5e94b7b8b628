"""Questions of several turns, in the format of FastChat's MT-Bench."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfcontrast.data.example import Example
from selfcontrast.data.jsonl import read_rows
from selfcontrast.errors import UserError


@dataclass(frozen=True)
class Questions:
    """`references`: by question id, an answer to each turn."""

    examples: list[Example]
    references: Mapping[str, tuple[str, ...]]


def read_questions(path: str, references: str | None) -> Questions:
    """Rows {question_id, category, turns, reference?}; `references` are answers of a model in FastChat's format.

    Raises:
        UserError: for a row that is unusable, a question that stands twice, or a reference to no question.
    """
    examples: dict[str, Example] = {}
    found: dict[str, tuple[str, ...]] = {}
    for where, row in read_rows(path, "questions"):
        place = f"{path}, {where}"
        turns = _texts(row, "turns", place)
        name = str(row.get("question_id", where))
        if name in examples:
            raise UserError(f"{place}: question {name} stands twice")
        examples[name] = Example(
            name, [{"role": "user", "content": turns[0]}], "", category=str(row.get("category", "")), turns=turns
        )
        if row.get("reference"):
            found[name] = tuple(_texts(row, "reference", place))
    if references is not None:
        found = _references(references)
        if unknown := set(found) - set(examples):
            raise UserError(f"{references}: question {min(unknown)} is not in {path}")
    for name, texts in found.items():
        if len(texts) != len(examples[name].turns):
            raise UserError(f"{references or path}: question {name} needs a reference for each of its turns")
    return Questions(list(examples.values()), found)


def _references(path: str) -> dict[str, tuple[str, ...]]:
    found = {}
    for where, row in read_rows(path, "references"):
        place = f"{path}, {where}"
        choices = row.get("choices") if isinstance(row, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise UserError(f"{place}: no answer of FastChat's format (question_id, choices: [{{turns: […]}}])")
        found[str(row.get("question_id"))] = tuple(_texts(choices[0], "turns", place))
    return found


def _texts(row: Any, column: str, place: str) -> list[str]:
    value = row.get(column) if isinstance(row, dict) else None
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise UserError(f"{place}: '{column}' must be a list of texts, one for each turn")
    return value
