"""Locate the public data that some tests read: a folder `shared/data` beside the repository, or above it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shared_data(*names: str) -> Path:
    """A file or folder of it, by its path's parts; the test is skipped where there is none.

    `SELFCONTRAST_SHARED_DATA` names the folder; else it is looked for beside the repository and every folder above.
    """
    given = os.environ.get("SELFCONTRAST_SHARED_DATA")
    places = [Path(given)] if given else [folder / "shared" / "data" for folder in ROOT.parents]
    for place in places:
        if (found := place.joinpath(*names)).exists():
            return found
    pytest.skip(f"shared/data/{'/'.join(names)} is neither beside the repository nor in SELFCONTRAST_SHARED_DATA")
