"""W&B runs for tests: started online or offline, and read back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from selfcontrast.tracking import WandbTracking
from wandb_files import OfflineRun
from wandb_server import WandbServer

KEY = "f" * 40


def tracking(mode: str = "auto", upload: bool = False) -> WandbTracking:
    return WandbTracking("selfcontrast", None, "a group", ["a tag"], mode, upload)


def online(monkeypatch: pytest.MonkeyPatch, server: WandbServer) -> WandbTracking:
    for name, value in {**server.environment, "WANDB_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    return tracking("online")


def offline_runs(folder: Path) -> Iterator[OfflineRun]:
    wandb.teardown()  # its service process writes until it ends
    for file in sorted(folder.rglob("*.wandb"), key=lambda file: file.stat().st_mtime):
        yield OfflineRun(file)
