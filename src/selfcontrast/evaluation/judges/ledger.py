"""Record judgments on disk, under a hash of everything that they depend on.

Every try is one line of a file, written when the reply arrives. Only ok judgments are reused. A failed judgment is
requested again, and the tokens of its failed try still count.
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
    """The judgments file of one judge."""

    def __init__(self, folder: Path, judge: Mapping[str, Any]) -> None:
        self._judge = dict(judge)
        self._file = folder / f"by-{key_of(self._judge)}.jsonl"
        self._judgments: dict[str, Judgment] = {}
        if self._file.exists():
            damaged = 0
            for line in lines_of(self._file):
                try:
                    self._read(line)
                except Damaged:
                    damaged += 1
            if damaged:
                log.warning("%s: %d damaged judgments are ignored and requested again", self._file, damaged)

    def key(self, prompt: str, pairwise: bool) -> str:
        """Return a judgment's key. The prompt holds the wording, the question, every answer and their order."""
        return key_of({"judge": self._judge, "prompt": prompt, "pairwise": pairwise})

    def get(self, key: str) -> Judgment | None:
        """Return the latest ok judgment, or the latest failed one if none is ok, with the tokens of all tries."""
        return self._judgments.get(key)

    def add(self, key: str, judgment: Judgment) -> None:
        """Write one try to disk before returning."""
        append_line(self._file, sealed_line({"key": key, **asdict(judgment)}))
        self._remember(key, judgment)

    def _read(self, line: str) -> None:
        """Read a line; raise `Damaged` if its judgment was changed after it was written."""
        if (values := read_line(line)) is None:  # a line cut short by a killed process
            return
        try:
            self._remember(values.pop("key"), Judgment(**values))
        except (ValueError, TypeError, KeyError) as error:
            raise Damaged(str(error)) from error

    def _remember(self, key: str, judgment: Judgment) -> None:
        if earlier := self._judgments.get(key):
            judgment = replace(
                # If two jobs send the same request at once, one may fail after the other has succeeded.
                earlier if earlier.status == "ok" != judgment.status else judgment,
                prompt_tokens=earlier.prompt_tokens + judgment.prompt_tokens,
                completion_tokens=earlier.completion_tokens + judgment.completion_tokens,
            )
        self._judgments[key] = judgment
