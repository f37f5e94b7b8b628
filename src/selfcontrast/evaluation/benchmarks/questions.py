"""Read questions of several turns, in the format of FastChat's MT-Bench."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfcontrast.data.example import Example
from selfcontrast.data.jsonl import read_rows
from selfcontrast.errors import UserError


@dataclass(frozen=True)
class Questions:
    """Questions, and their reference answers: by question id, one for each turn."""

    examples: list[Example]
    references: Mapping[str, tuple[str, ...]]


def read_questions(path: str, references: str | None) -> Questions:
    """Read rows {question_id, category, turns, reference?}; `references` is a file of answers in FastChat's format.

    Raises:
        UserError: for an unusable row, a question that occurs twice, or a reference to an unknown question.
    """
    examples: dict[str, Example] = {}
    answers: dict[str, tuple[str, ...]] = {}
    for row_name, row in read_rows(path, "questions"):
        where = f"{path}, {row_name}"
        turns = _texts(row, "turns", where)
        name = str(row.get("question_id", row_name))
        if name in examples:
            raise UserError(f"{where}: question {name} occurs twice. Keep one of them.")
        examples[name] = Example(
            name, [{"role": "user", "content": turns[0]}], "", category=str(row.get("category", "")), turns=turns
        )
        if row.get("reference"):
            answers[name] = tuple(_texts(row, "reference", where))
    if references is not None:
        answers = _references(references)
        if unknown := set(answers) - set(examples):
            raise UserError(f"{references}: question {min(unknown)} is not in {path}. Remove it.")
    for name, texts in answers.items():
        if len(texts) != len(examples[name].turns):
            raise UserError(
                f"{references or path}: question {name} has {len(texts)} references for {len(examples[name].turns)} "
                "turns. Give one per turn, or none."
            )
    return Questions(list(examples.values()), answers)


def _references(path: str) -> dict[str, tuple[str, ...]]:
    answers = {}
    for row_name, row in read_rows(path, "references"):
        where = f"{path}, {row_name}"
        choices = row.get("choices") if isinstance(row, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise UserError(f"{where}: not in FastChat's format. It needs question_id and choices: [{{turns: […]}}].")
        answers[str(row.get("question_id"))] = tuple(_texts(choices[0], "turns", where))
    return answers


def _texts(row: Any, column: str, where: str) -> list[str]:
    value = row.get(column) if isinstance(row, dict) else None
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise UserError(f"{where}: '{column}' must be a list of texts, one for each turn")
    return value
