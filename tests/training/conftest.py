"""Ranks that start at once."""

import pytest

from forked import serve
from selfcontrast.training import ranks


@pytest.fixture(autouse=True)
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the ranks of a training from a server that has imported everything. Whole jobs spawn theirs."""
    serve()
    monkeypatch.setattr(ranks, "START", "forkserver")
