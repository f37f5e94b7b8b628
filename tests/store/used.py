"""The artifacts of the store that `conftest.used_store` makes."""

from dataclasses import dataclass
from pathlib import Path

from selfcontrast.store import Artifact


@dataclass(frozen=True)
class UsedStore:
    """A store with sft ─► generate ─► align at K = 1 (`k1`) and 8 (`k8`).

    The run `one`, which still exists, used `k1`; the run `gone` used `k8`. `old` is another sft, which nothing uses. A
    generate was abandoned.
    """

    root: Path
    sft: Artifact
    old: Artifact
    generate: Artifact
    k1: Artifact
    k8: Artifact
    abandoned: Path
