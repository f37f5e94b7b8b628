"""Judgments that were asked for, kept under a hash of all that decides them.

Every try is a line of a file, written as soon as it is there. Only a judgment that is ok is ever taken from it; what
failed is asked for again, and its tokens still count.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from selfcontrast.evaluation.judges.judgment import Judgment
from selfcontrast.store.artifact import key_of
from selfcontrast.store.sealed import Damaged, append_line, lines_of, read_line, sealed_line

log = logging.getLogger(__name__)


class Ledger:
    """One judge's file."""

    def __init__(self, folder: Path, judge: Mapping[str, Any]) -> None:
        self._judge = dict(judge)
        self._file = folder / f"by-{key_of(self._judge)}.jsonl"
        self._found: dict[str, Judgment] = {}
        if self._file.exists():
            damaged = 0
            for line in lines_of(self._file):
                try:
                    self._read(line)
                except Damaged:
                    damaged += 1
            if damaged:
                log.warning("%s: %d judgments are damaged and not used; they are asked for again", self._file, damaged)

    def key(self, prompt: str, pairwise: bool) -> str:
        """Of the judgment: the prompt holds the wording, the question, every answer and their order."""
        return key_of({"judge": self._judge, "prompt": prompt, "pairwise": pairwise})

    def get(self, key: str) -> Judgment | None:
        """The latest that is ok, or else the latest, with the tokens of all tries."""
        return self._found.get(key)

    def add(self, key: str, judgment: Judgment) -> None:
        """Keeps one try, on the disk before this returns."""
        append_line(self._file, sealed_line({"key": key, **asdict(judgment)}))
        self._remember(key, judgment)

    def _read(self, line: str) -> None:
        """Raises `Damaged` for what is no judgment as it was written."""
        if (values := read_line(line)) is None:  # half a line, of a process that was killed
            return
        try:
            self._remember(values.pop("key"), Judgment(**values))
        except (ValueError, TypeError, KeyError) as error:
            raise Damaged(str(error)) from error

    def _remember(self, key: str, judgment: Judgment) -> None:
        if before := self._found.get(key):
            judgment = replace(
                # Of two jobs that ask at once one may fail after the other was answered.
                before if before.status == "ok" != judgment.status else judgment,
                prompt_tokens=before.prompt_tokens + judgment.prompt_tokens,
                completion_tokens=before.completion_tokens + judgment.completion_tokens,
            )
        self._found[key] = judgment
