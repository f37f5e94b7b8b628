import os
from pathlib import Path

import pytest

from selfcontrast.store import Artifact, Stage, Store


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove W&B's keys and settings from the environment."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def artifacts(tmp_path: Path) -> tuple[Artifact, Artifact]:
    """Return two artifacts. The second is computed from the first."""
    store = Store(tmp_path / "store")

    def compute(folder: Path) -> dict[str, int]:
        (folder / "file.txt").write_text("content")
        return {"prompts": 3}

    first = store.get(Stage("sft", 1, {"lr": 0.1}, {}, compute))
    return first, store.get(Stage("align", 1, {"negatives": 2}, {"sft": first}, compute))
