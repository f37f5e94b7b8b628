"""Provide a store with artifacts of two runs, for the tests of its commands."""

import shutil
from pathlib import Path

import pytest
from computing import write
from used import UsedStore

from selfcontrast.store import RESUME, Stage, Store
from selfcontrast.store.runs import Run


@pytest.fixture
def used_store(tmp_path: Path) -> UsedStore:
    root = tmp_path / "store"
    for name in ("one", "gone"):
        (tmp_path / name).mkdir(exist_ok=True)
    first, second = (Store(root, Run(root, tmp_path / name)) for name in ("one", "gone"))
    optim = {"epochs": 3, "betas": [0.9, 0.95]}
    sft = first.get(Stage("sft", 1, {"optim": {"lr": 0.001, **optim}, "seed": 1}, {}, write("12345")))
    generate = first.get(Stage("generate", 1, {"samples": 4}, {"sft": sft}, write()))
    align_1 = first.get(Stage("align", 1, {"negatives": 1, "seed": 1}, {"sft": sft, "negatives": generate}, write()))
    second.get(Stage("sft", 1, {"optim": {"lr": 0.001, **optim}, "seed": 1}, {}, write()))
    second.get(Stage("generate", 1, {"samples": 4}, {"sft": sft}, write()))
    align_8 = second.get(Stage("align", 1, {"negatives": 8, "seed": 1}, {"sft": sft, "negatives": generate}, write()))
    old = Store(root).get(Stage("sft", 1, {"optim": {"lr": 0.1, **optim}, "seed": 1}, {}, write()))

    def fails(folder: Path) -> None:
        (folder / RESUME).mkdir()
        (folder / RESUME / "shard").write_text("1234567")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Store(root).get(Stage("generate", 1, {"samples": 9}, {"sft": sft}, fails))
    (abandoned,) = root.glob("generate/*.partial")
    shutil.rmtree(tmp_path / "gone")
    return UsedStore(root, sft, old, generate, align_1, align_8, abandoned)
