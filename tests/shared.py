"""Find the public data that some tests read: a folder `shared/data` next to the repository or above it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shared_data(*names: str) -> Path:
    """Return a file or folder of the public data by the parts of its path. Skip the test if it does not exist.

    `SELFCONTRAST_SHARED_DATA` names the folder. By default it is searched next to the repository and in folders above.
    """
    variable = os.environ.get("SELFCONTRAST_SHARED_DATA")
    folders = [Path(variable)] if variable else [folder / "shared" / "data" for folder in ROOT.parents]
    for folder in folders:
        if (path := folder.joinpath(*names)).exists():
            return path
    pytest.skip(f"shared/data/{'/'.join(names)} is neither next to the repository nor in SELFCONTRAST_SHARED_DATA")
