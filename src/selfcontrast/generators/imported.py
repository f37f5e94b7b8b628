"""Candidates made elsewhere: a file of prompts and their responses, in place of sampling."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from selfcontrast.constrained import Count, Seed, Text, check_numbers
from selfcontrast.data.example import Example, Message
from selfcontrast.data.formats import OddRow, RowError, prompt_of, ranked_texts, text
from selfcontrast.data.jsonl import existing, read_folder
from selfcontrast.engines.work import Engine
from selfcontrast.errors import UserError
from selfcontrast.generators.given import write_given
from selfcontrast.generators.stage import choose
from selfcontrast.store import NOT_IN_KEY, fields_of
from selfcontrast.store.content import Content, note, noted

log = logging.getLogger(__name__)

COLUMNS = ("responses", "negatives")  # one of them
WHERE = "generator.path"


@dataclass(frozen=True)
class Import:
    """Rows with a prompt, in any of the formats of `data/formats.py`, and a list of `responses`.

    In the authors' release (`data/release.py`) the rejected answer of `output` = [chosen, rejected] is the response.

    A training prompt is given the responses of all rows whose messages are its own. They may be fewer for one prompt
    than for another.

    Attributes:
        path: a file as of `data.jsonl.Jsonl`, or a folder of such files; its content is in the artifact's key, and not
            where it lies.
        prompts: how many of the prompts with responses, drawn with `seed`; None for all.
        max_length: tokens of prompt and response; longer ones are left out and counted.
    """

    follows_model: ClassVar[bool] = False
    tells_log_probs: ClassVar[bool] = False

    path: Text = field(metadata=NOT_IN_KEY)  # its content is
    prompts: Count | None
    max_length: Count
    seed: Seed

    def __post_init__(self) -> None:
        check_numbers(self, "generator")

    @property
    def samples(self) -> int:
        return max(map(len, self._responses.values()))

    def check(self, examples: Sequence[Example]) -> None:
        given, asked = self._responses.keys(), {_key(example.prompt) for example in examples}
        if not given & asked:
            raise UserError(f"{WHERE}={self.path}: none of its {len(given)} prompts is one of the training split's")
        if foreign := len(given - asked):
            log.warning("%s: %d of %d prompts are not in the training split: not used", self.path, foreign, len(given))
        if bare := len(asked - given):
            log.warning("%s: %d of %d training prompts have no responses: not used", self.path, bare, len(asked))

    def fingerprint(self) -> dict[str, Any]:
        return {**fields_of(self), "path": (noted(self) or Content.of(self._place)).hash}

    @property
    def _place(self) -> Path:
        """The file or folder. Raises `UserError` where it is missing."""
        return Path(self.path) if Path(self.path).is_dir() else existing(self.path, WHERE)

    def generate(
        self, folder: Path, model: Path, examples: Sequence[Example], engine: Engine, device: str
    ) -> dict[str, Any]:
        """Writes `folder/candidates.parquet`, the prompts in their own order."""
        own = [example for example in examples if _key(example.prompt) in self._responses]
        chosen = choose(own, self.prompts, self.seed)
        responses = {example.id: self._responses[_key(example.prompt)] for example in chosen}
        return write_given(folder, model, chosen, responses, self.max_length)

    @cached_property
    def _responses(self) -> dict[str, list[str]]:
        """Per prompt all its responses. Raises `UserError` that names the line of a row that is unusable."""
        content = note(self, self._place)
        found: dict[str, list[str]] = {}
        for prompt, responses in self._read():
            found.setdefault(_key(prompt), []).extend(responses)
        content.check(WHERE)
        if not found:
            raise UserError(f"{WHERE}={self.path}: no row with a prompt and responses")
        return found

    def _read(self) -> Iterator[tuple[list[Message], list[str]]]:
        for place, row in read_folder(self.path, WHERE):
            try:
                if not isinstance(row, dict):
                    raise RowError(f"a row must be an object with columns, not {type(row).__name__}")
                yield prompt_of(row), _texts(row)
            except OddRow as reason:
                log.warning("%s, %s: %s: left out", self.path, place, reason)
            except RowError as error:
                raise UserError(f"{self.path}, {place}: {error}") from None


def _texts(row: dict[str, Any]) -> list[str]:
    named = [name for name in COLUMNS if row.get(name) is not None]
    if len(named) > 1:
        raise RowError(f"{' and '.join(map(repr, named))} both hold responses: leave one of them out")
    column = named[0] if named else COLUMNS[0]
    given = row.get(column)
    if given is None and (texts := ranked_texts(row.get("output"))):
        given = texts[1:]
    if not isinstance(given, list) or not given:
        raise RowError(f"'{column}' must be a list of at least one text")
    return [text(item, f"{i} of '{column}'", blank=True) for i, item in enumerate(given, start=1)]


def _key(prompt: Sequence[Message]) -> str:
    """What makes two dialogues the same: who says what, whatever the space around it."""
    return json.dumps([[message["role"], message["content"].strip()] for message in prompt], ensure_ascii=False)
