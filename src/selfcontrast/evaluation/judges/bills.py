"""What a judge's requests may have cost, on the disk before each of them is made.

A request that is killed, cut short or never answered may be billed all the same. So each try is a line of a file with
the most that it may cost, written before it is sent; a later line with the same number replaces it by what it did cost.
What no line replaces counts at its most.
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
    """Tokens of one try, for a prompt of this hash."""

    prompt: str
    prompt_tokens: int
    completion_tokens: int


class Bills:
    """One judge's file."""

    def __init__(self, folder: Path, judge: Mapping[str, Any]) -> None:
        self._file = folder / f"bills-{key_of(dict(judge))}.jsonl"
        self._bills: dict[str, Bill] = {}
        self._tries: dict[str, list[str]] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

    def tokens(self, prompt: str) -> tuple[int, int]:
        """Tokens read and written for this prompt, in all tries."""
        bills = [self._bills[number] for number in self._tries.get(_hash(prompt), ())]
        return sum(bill.prompt_tokens for bill in bills), sum(bill.completion_tokens for bill in bills)

    def begin(self, prompt: str, prompt_tokens: int, completion_tokens: int) -> str:
        """Keep what a try may cost at most; returns its number. On the disk before this returns."""
        number = secrets.token_hex(8)
        self._write(number, Bill(_hash(prompt), prompt_tokens, completion_tokens))
        return number

    def settle(self, number: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace what the try might have cost by what it did."""
        self._write(number, Bill(self._bills[number].prompt, prompt_tokens, completion_tokens))

    def _write(self, number: str, bill: Bill) -> None:
        append_line(self._file, json.dumps({"try": number, **vars(bill)}))
        self._remember(number, bill)

    def _read(self, line: str) -> None:
        try:
            values = json.loads(line)
            bill = Bill(str(values["prompt"]), int(values["prompt_tokens"]), int(values["completion_tokens"]))
            self._remember(str(values["try"]), bill)
        except (ValueError, TypeError, KeyError, OverflowError):  # half a line, of a process that was killed
            return

    def _remember(self, number: str, bill: Bill) -> None:
        if number not in self._bills:
            self._tries.setdefault(bill.prompt, []).append(number)
        self._bills[number] = bill


def _hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode(errors="replace")).hexdigest()[:20]
