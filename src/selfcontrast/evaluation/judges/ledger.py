"""Judgments that were asked for, kept under a hash of all that decides them, and what they cost.

Every try is a line of a file, written as soon as it is there. Only a judgment that is ok is ever taken from it; what
failed is asked for again, and its tokens still count.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.judgment import Judgment
from selfcontrast.store.artifact import key_of

CHARACTERS_PER_TOKEN = 3  # few, so that an estimate is rather too high; what was really used replaces it


class Ledger:
    """One judge's file."""

    def __init__(self, folder: Path, judge: Mapping[str, Any]) -> None:
        self._judge = dict(judge)
        self._file = folder / f"by-{key_of(self._judge)}.jsonl"
        self._found: dict[str, Judgment] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def key(self, prompt: str, pairwise: bool) -> str:
        """Of the judgment: the prompt holds the wording, the question, every answer and their order."""
        return key_of({"judge": self._judge, "prompt": prompt, "pairwise": pairwise})

    def get(self, key: str) -> Judgment | None:
        """The latest, whatever its status, with the tokens of all tries."""
        return self._found.get(key)

    def add(self, key: str, judgment: Judgment) -> None:
        """Keeps one try, on the disk before this returns."""
        line = json.dumps({"key": key, **asdict(judgment)}, ensure_ascii=True)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # With a line break first: what a killed process left of its last line spoils no other.
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
            file.flush()
            os.fsync(file.fileno())
        self._remember(key, judgment)

    def _read(self, line: str) -> None:
        try:
            values = json.loads(line)
            self._remember(values.pop("key"), Judgment(**values))
        except (ValueError, TypeError, KeyError, AttributeError):  # half a line, of a process that was killed
            return

    def _remember(self, key: str, judgment: Judgment) -> None:
        if before := self._found.get(key):
            judgment = replace(
                judgment,
                prompt_tokens=before.prompt_tokens + judgment.prompt_tokens,
                completion_tokens=before.completion_tokens + judgment.completion_tokens,
            )
        self._found[key] = judgment


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in any currency."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Budget:
    """What may still be spent. A request is only made where even its longest answer stays within the cap."""

    def __init__(self, price: Price | None, cap: float | None, spent: float) -> None:
        self._price, self._cap = price, cap
        self._spent = spent

    def reserve(self, prompt: str, max_tokens: int) -> float:
        """Sets aside what a request may cost at most. Raises `UserError` where that is too much."""
        if self._price is None:
            return 0.0
        most = self._price.of(estimated_tokens(prompt), max_tokens)
        if self._cap is not None and self._spent + most > self._cap:
            raise UserError(
                f"judge.cap={self._cap:g} is reached: {self._spent:.4g} is spent or under way; what is judged is "
                "kept: raise the cap and run the same command again, or lower the benchmark's limit"
            )
        self._spent += most
        return most

    def settle(self, reserved: float, prompt_tokens: int, completion_tokens: int) -> None:
        """Replaces what was set aside by what was used."""
        if self._price:
            self._spent += self._price.of(prompt_tokens, completion_tokens) - reserved


def estimated_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)
