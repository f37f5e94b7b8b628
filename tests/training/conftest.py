"""Ranks that start at once; a training that was never interrupted."""

import pytest
from killed_runs import trained
from torch import Tensor

from forked import serve
from selfcontrast.training import ranks
from selfcontrast.training.module import Record
from tiny import optim


@pytest.fixture(autouse=True)
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the ranks of a training from a server that has imported everything. Whole jobs spawn theirs."""
    serve()
    monkeypatch.setattr(ranks, "START", "forkserver")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[Record]]:
    """Six steps, a validation after each second one, never interrupted."""
    return trained(tmp_path_factory.mktemp("whole"), optim(validations=3))
