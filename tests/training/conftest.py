"""Provide ranks that start quickly, and an uninterrupted training run."""

import pytest
from killed_runs import run_training
from torch import Tensor

from forked import serve
from selfcontrast.training import ranks
from selfcontrast.training.packed_module import Record
from tiny import optim


@pytest.fixture(autouse=True)
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork training ranks from a server with all imports done. Whole jobs spawn their ranks."""
    serve()
    monkeypatch.setattr(ranks, "START", "forkserver")


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[Record]]:
    """Return weights and history of six uninterrupted steps, with a validation after every second step."""
    return run_training(tmp_path_factory.mktemp("whole"), optim(validations=3))
