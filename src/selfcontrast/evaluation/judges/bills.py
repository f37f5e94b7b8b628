"""Record the cost of a judge's requests on disk, before each request is sent.

A request that is killed, cut short or never answered may still be billed. So before each try is sent, a line with the
try's maximum cost is written. A later line with the same number replaces the maximum by the actual cost. Without this
second line, the try counts at its maximum cost.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcontrast.store.artifact import key_of
from selfcontrast.store.sealed import append_line


@dataclass(frozen=True)
class Bill:
    """The tokens of one try. `prompt` is a hash of the prompt."""

    prompt: str
    prompt_tokens: int
    completion_tokens: int


class Bills:
    """The bills file of one judge."""

    def __init__(self, folder: Path, judge: Mapping[str, Any]) -> None:
        self._file = folder / f"bills-{key_of(dict(judge))}.jsonl"
        self._bills: dict[str, Bill] = {}
        self._tries: dict[str, list[str]] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

    def tokens(self, prompt: str) -> tuple[int, int]:
        """Return the prompt and completion tokens of all tries of this prompt."""
        bills = [self._bills[number] for number in self._tries.get(_hash(prompt), ())]
        return sum(bill.prompt_tokens for bill in bills), sum(bill.completion_tokens for bill in bills)

    def begin(self, prompt: str, prompt_tokens: int, completion_tokens: int) -> str:
        """Write a try's maximum cost to disk and return the try's number."""
        number = secrets.token_hex(8)
        self._write(number, Bill(_hash(prompt), prompt_tokens, completion_tokens))
        return number

    def settle(self, number: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace a try's maximum cost by its actual cost."""
        self._write(number, Bill(self._bills[number].prompt, prompt_tokens, completion_tokens))

    def _write(self, number: str, bill: Bill) -> None:
        append_line(self._file, json.dumps({"try": number, **vars(bill)}))
        self._remember(number, bill)

    def _read(self, line: str) -> None:
        try:
            values = json.loads(line)
            bill = Bill(str(values["prompt"]), int(values["prompt_tokens"]), int(values["completion_tokens"]))
            self._remember(str(values["try"]), bill)
        except (ValueError, TypeError, KeyError, OverflowError):  # a line cut short by a killed process
            return

    def _remember(self, number: str, bill: Bill) -> None:
        if number not in self._bills:
            self._tries.setdefault(bill.prompt, []).append(number)
        self._bills[number] = bill


def _hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode(errors="replace")).hexdigest()[:20]
