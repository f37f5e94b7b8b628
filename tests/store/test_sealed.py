"""Test that a change of any byte in a sealed file or line is detected."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engines.test_local import Doubling, shards
from selfcontrast.engines.local import Local
from selfcontrast.engines.work import read_table, write_table
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges import Judgment
from selfcontrast.evaluation.judges.ledger import Ledger
from selfcontrast.store import Stage
from selfcontrast.store.__main__ import main
from selfcontrast.store.sealed import Damaged, check_sealed, read_line, sealed_line
from selfcontrast.store.store import Store

TABLE = pa.table({"id": ["a", "b"], "token_ids": [[1, 2], [3]], "log_prob": [-2.5, -1.5]})


def flip_bit(file: Path, at: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


def test_shard_is_ordinary_parquet(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", TABLE)
    assert pq.read_table(tmp_path / "a.parquet").equals(read_table(tmp_path / "a.parquet"))
    assert read_table(tmp_path / "a.parquet", columns=["token_ids"]).to_pydict() == {"token_ids": [[1, 2], [3]]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_shard_any_flipped_byte_is_detected(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_table(file, TABLE)
    intact = file.read_bytes()
    for at in range(len(intact)):
        flip_bit(file, at, at % 8)
        assert check_sealed(file), at
        file.write_bytes(intact)
    assert check_sealed(file) is None


@pytest.mark.parametrize("length", [0, 1, 4, 100, -1, -9])
def test_shard_truncated_or_empty_is_detected(length: int, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_table(file, TABLE)
    file.write_bytes(file.read_bytes()[:length])
    assert check_sealed(file)
    with pytest.raises(UserError, match=r"a\.parquet "):
        read_table(file)


def test_shard_copied_to_another_name_is_detected(tmp_path: Path) -> None:
    for name in "ab":
        write_table(tmp_path / f"{name}.parquet", TABLE)
    shutil.copy(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert "has changed" in str(check_sealed(tmp_path / "b.parquet"))


def test_engine_damaged_shards_are_reported_and_recomputed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = shards(tmp_path, [1, 2], [3], [4], [5])
    Local(1, 1).run(Doubling(), work, "cpu", "double", "number")
    flip_bit(work[0].file, 40)
    work[1].file.write_bytes(b"")
    pq.write_table(pa.table({"double": [9]}), work[2].file)  # a file of another program, without a checksum
    task = Doubling()
    Local(1, 1).run(task, work, "cpu", "double", "number")
    assert task.events == ["open on cpu", [1, 2], [3], [4], "close"]
    assert [read_table(shard.file)["double"].to_pylist() for shard in work] == [[2, 4], [6], [8], [10]]
    assert [message.rpartition(" ")[0].split()[1:] for message in caplog.messages] == [
        ["has", "changed", "since", "it", "was", "written;", "computing", "it"],
        ["is", "incomplete;", "computing", "it"],
        ["has", "no", "checksum;", "computing", "it"],
    ]


def test_line_with_any_flipped_byte_is_damaged_or_unfinished(tmp_path: Path) -> None:
    line = sealed_line({"key": "k", "status": "ok", "value": 7.0, "reply": "é [[7]]"})
    for at in range(len(line)):
        changed = bytearray(line.encode())
        changed[at] ^= 1
        try:
            values = read_line(changed.decode("ascii", "replace"))
        except Damaged:
            continue
        assert values is None, at
    assert read_line(line) == {"key": "k", "status": "ok", "value": 7.0, "reply": "é [[7]]"}
    assert read_line(line[:-9]) is None


def test_ledger_edited_verdicts_are_reported_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(tmp_path / "judgments", {"model": "m"})
    for key in "abc":
        ledger.add(key, Judgment("ok", 2.0, "[[2]]", 7, 2))
    [file] = (tmp_path / "judgments").iterdir()
    assert main(["verify", "--store", str(tmp_path)]) == 0
    file.write_text(file.read_text().replace('"value": 2.0', '"value": 9.0', 2))
    reloaded = Ledger(tmp_path / "judgments", {"model": "m"})
    assert [reloaded.get(key) is None for key in "abc"] == [True, True, False]
    assert "2 damaged judgments" in caplog.text
    assert main(["verify", "--store", str(tmp_path)]) == 1
    assert f"damaged  judgments/{file.name}: 2 lines have changed" in capsys.readouterr().out


def test_ledger_without_checksums_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {"model": "m"})
    ledger.add("a", Judgment("ok", 2.0))
    [file] = tmp_path.iterdir()
    values = json.loads(file.read_text())
    del values["sum"]
    file.write_text(json.dumps(values))
    assert Ledger(tmp_path, {"model": "m"}).get("a") == Judgment("ok", 2.0)


@pytest.mark.parametrize("part", ["summary", "seconds", "created", "provenance"])
def test_verify_detects_edited_manifest(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    artifact = store.get(
        Stage("stage", 1, {}, {}, lambda folder: {"steps": 3, "mean": float("nan"), "by_rank": {1: 2}})
    )
    assert main(["verify", "--store", str(tmp_path)]) == 0
    manifest = artifact.path / "manifest.json"
    values = json.loads(manifest.read_text())
    values[part] = {"steps": 4} if part in ("summary", "provenance") else 1.0
    manifest.write_text(json.dumps(values))
    assert main(["verify", "--store", str(tmp_path)]) == 1
    assert "its manifest has changed since it was written" in capsys.readouterr().out
    recomputed = store.get(Stage("stage", 1, {}, {}, lambda folder: {"steps": 3}))
    assert not recomputed.cached
    assert recomputed.summary == {"steps": 3}
