"""What tests of the whole command share: `train.py` in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[1]


class RunTrain(Protocol):
    """Runs `python train.py OVERRIDES` in `cwd`, with `env` added to the environment."""

    def __call__(
        self, *overrides: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run_train() -> RunTrain:
    def run(*overrides: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train.py"), *overrides]
        return subprocess.run(
            command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
        )

    return run
