import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from computing import never, write

from selfcontrast.errors import UserError
from selfcontrast.store import Stage, Store, runs
from selfcontrast.store.runs import Recorded, Run, all_runs


def artifacts_by_run(root: Path) -> dict[str, set[str]]:
    return {run.folder.name: set(run.artifacts) for run in all_runs(root)}


def test_run_records_computed_and_cached_artifacts(tmp_path: Path) -> None:
    root = tmp_path / "store"
    sft = Store(root, Run(root, tmp_path / "first")).get(Stage("sft", 1, {}, {}, write()))
    store = Store(root, Run(root, tmp_path / "second"))
    store.get(Stage("sft", 1, {}, {}, never))
    align = store.get(Stage("align", 1, {}, {"sft": sft}, write()))
    assert artifacts_by_run(root) == {"first": {f"sft/{sft.key}"}, "second": {f"sft/{sft.key}", f"align/{align.key}"}}


def test_run_is_recorded_before_artifact_exists(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        assert artifacts_by_run(tmp_path)["out"] == {f"sft/{folder.stem}"}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Store(tmp_path, Run(tmp_path, tmp_path / "out")).get(Stage("sft", 1, {}, {}, fails))


def test_run_resumed_keeps_its_artifacts(tmp_path: Path) -> None:
    Run(tmp_path, tmp_path / "out").uses("sft", "a")
    Run(tmp_path, tmp_path / "out").uses("align", "b")
    assert artifacts_by_run(tmp_path) == {"out": {"sft/a", "align/b"}}


def test_run_existence_survives_remount(tmp_path: Path) -> None:
    output = tmp_path / "machine" / "outputs" / "1"
    output.mkdir(parents=True)
    Run(tmp_path / "machine" / "store", output).uses("sft", "a")
    moved = (tmp_path / "machine").rename(tmp_path / "another")
    (run,) = all_runs(moved / "store")
    assert run.exists
    shutil.rmtree(moved / "outputs" / "1")
    assert not run.exists


@pytest.mark.parametrize(("host", "exists"), [(runs.socket.gethostname(), False), ("another", True)])
def test_run_missing_folder_counts_as_existing_on_other_machine(tmp_path: Path, host: str, exists: bool) -> None:
    record = tmp_path / "runs" / "run.json"
    record.parent.mkdir()
    facts = {"folder": "/nowhere", "host": host, "from_store": None, "artifacts": ["sft/a"]}
    record.write_text(json.dumps(facts))
    (run,) = all_runs(tmp_path)
    assert run.exists is exists


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"folder": "x"}'])
def test_run_unreadable_record_is_none(tmp_path: Path, damage: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run.json").write_text(damage)
    assert Recorded.read(tmp_path / "runs" / "run.json") is None
    assert all_runs(tmp_path) == []


def test_run_in_read_only_store_reads_but_does_not_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Store(tmp_path).get(Stage("sft", 1, {}, {}, write()))

    def refuse(path: Path, value: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(runs, "write_json", refuse)
    monkeypatch.setattr("selfcontrast.store.locks.write_json", refuse)
    store = Store(tmp_path, Run(tmp_path, tmp_path / "out"))
    assert store.get(Stage("sft", 1, {}, {}, never)) == artifact
    with pytest.raises(UserError, match="Read-only file system"):
        store.get(Stage("sft", 2, {}, {}, never))
