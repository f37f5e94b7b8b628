"""One finished job, which the tests of whole jobs share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs import TINY, read_result, run_train

SECRET = "0123456789abcdef" * 2 + "planted0"  # as long as a key of W&B's


@dataclass(frozen=True)
class Finished:
    """A tiny built-in job that has run in a folder of its own, with a planted key and W&B offline."""

    folder: Path
    result: dict[str, Any]
    stdout: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    ended = run_train(*TINY, cwd=folder, env={"WANDB_API_KEY": SECRET})
    assert ended.returncode == 0, ended.stderr
    return Finished(folder, read_result(folder / "out"), ended.stdout)
