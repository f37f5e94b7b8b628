"""Import candidates from a file of prompts and responses, instead of sampling."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Text
from selfcontrast.data.example import Example, Message
from selfcontrast.data.formats import RowError, SkippedRow, prompt_of, ranked_texts, text
from selfcontrast.data.jsonl import read_folder, rows_file
from selfcontrast.engines.work import Engine
from selfcontrast.errors import UserError
from selfcontrast.generators.generate import choose
from selfcontrast.generators.responses import ExistingResponses, write_responses
from selfcontrast.store import NOT_IN_KEY, fields_of
from selfcontrast.store.content import Content, note, noted

log = logging.getLogger(__name__)

COLUMNS = ("responses", "negatives")  # a row has one of them
SETTING = "generator.path"


@dataclass(frozen=True)
class Import(ExistingResponses):
    """Import rows with a prompt, in any format of `data/formats.py`, and a list in `responses` or `negatives`.

    In the authors' release (`data/release.py`), the response is the rejected answer of `output` = [chosen, rejected].

    A training prompt gets the responses of all rows with the same messages. Prompts may differ in their number of
    responses.

    Attributes:
        path: a file as in `data.jsonl.Jsonl`, or a folder of such files. The artifact key depends on its content, not
            its location.
    """

    path: Text = field(metadata=NOT_IN_KEY)  # `fingerprint` puts the hash of the content into the key

    @property
    def samples(self) -> int:
        return max(map(len, self._responses.values()))

    def check(self, examples: Sequence[Example]) -> None:
        imported, trained = self._responses.keys(), {_key(example.prompt) for example in examples}
        if not imported & trained:
            raise UserError(
                f"{SETTING}={self.path}: none of its {len(imported)} prompts is in the training split. "
                "Import responses to training prompts."
            )
        if unused := len(imported - trained):
            log.warning(
                "%s: %d of %d prompts are not in the training split and not used", self.path, unused, len(imported)
            )
        if without_responses := len(trained - imported):
            log.warning(
                "%s: %d of %d training prompts have no responses and are not used",
                self.path,
                without_responses,
                len(trained),
            )

    def fingerprint(self) -> dict[str, Any]:
        return {**fields_of(self), "path": (noted(self) or Content.of(self._path)).hash}

    @property
    def _path(self) -> Path:
        """Return the file or folder. Raise `UserError` if it is missing."""
        return Path(self.path) if Path(self.path).is_dir() else rows_file(self.path, SETTING)

    def generate(
        self, folder: Path, model: Path, examples: Sequence[Example], engine: Engine, device: str
    ) -> dict[str, Any]:
        """Write `folder/candidates.parquet`, with the prompts in the order of `examples`."""
        matched = [example for example in examples if _key(example.prompt) in self._responses]
        chosen = choose(matched, self.prompts, self.seed)
        responses = {example.id: self._responses[_key(example.prompt)] for example in chosen}
        return write_responses(folder, model, chosen, responses, self.max_length)

    @cached_property
    def _responses(self) -> dict[str, list[str]]:
        """Return all responses of each prompt. Raise `UserError` with the line of an unusable row."""
        content = note(self, self._path)
        by_prompt: dict[str, list[str]] = {}
        for prompt, responses in self._read():
            by_prompt.setdefault(_key(prompt), []).extend(responses)
        content.check(SETTING)
        if not by_prompt:
            raise UserError(f"{SETTING}={self.path}: no row has a prompt and responses. Add the column 'responses'.")
        return by_prompt

    def _read(self) -> Iterator[tuple[list[Message], list[str]]]:
        for location, row in read_folder(self.path, SETTING):
            try:
                if not isinstance(row, dict):
                    raise RowError(f"a row must be an object with columns, not {type(row).__name__}")
                yield prompt_of(row), _texts(row)
            except SkippedRow as reason:
                log.warning("%s, %s: dropped a row: %s", self.path, location, reason)
            except RowError as error:
                raise UserError(f"{self.path}, {location}: {error}. {error.fix}") from None


def _texts(row: dict[str, Any]) -> list[str]:
    columns = [name for name in COLUMNS if row.get(name) is not None]
    if len(columns) > 1:
        raise RowError(f"{' and '.join(map(repr, columns))} both have responses", "Remove one of them.")
    column = columns[0] if columns else COLUMNS[0]
    responses = row.get(column)
    if responses is None and (texts := ranked_texts(row.get("output"))):
        responses = texts[1:]
    if not isinstance(responses, list) or not responses:
        raise RowError(f"'{column}' must be a list of at least one text")
    return [text(item, f"{i} of '{column}'", blank=True) for i, item in enumerate(responses, start=1)]


def _key(prompt: Sequence[Message]) -> str:
    """Return a string that is the same for two dialogues with equal roles and texts, except for outer white space."""
    return json.dumps([[message["role"], message["content"].strip()] for message in prompt], ensure_ascii=False)
