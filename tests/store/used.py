"""Describe the store that the fixture `used_store` in conftest.py creates."""

from dataclasses import dataclass
from pathlib import Path

from selfcontrast.store import Artifact


@dataclass(frozen=True)
class UsedStore:
    """A store with the stages sft ─► generate ─► align, the last at K = 1 (`k1`) and K = 8 (`k8`).

    Run `one` still exists and used `k1`. Run `gone` was deleted and used `k8`. `old` is an sft artifact that nothing
    uses. `abandoned` is the working folder of a generate stage that failed.
    """

    root: Path
    sft: Artifact
    old: Artifact
    generate: Artifact
    k1: Artifact
    k8: Artifact
    abandoned: Path
