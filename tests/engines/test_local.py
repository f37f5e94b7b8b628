"""Test that the local engine writes each shard once and atomically, and opens its worker only if needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfcontrast.engines.local import Local
from selfcontrast.engines.work import Shard, Worker, cut, write_table
from selfcontrast.errors import UserError


@dataclass
class Doubling:
    """A task that doubles numbers, fails at 13 and records its events."""

    events: list[object] = field(default_factory=list)

    @contextmanager
    def open(self, device: str) -> Iterator[Worker]:
        def work(items: Sequence[int]) -> pa.Table:
            self.events.append(list(items))
            if 13 in items:
                raise RuntimeError("13")
            return pa.table({"double": [2 * item for item in items]})

        self.events.append(f"open on {device}")
        try:
            yield work
        finally:
            self.events.append("close")


def shards(folder: Path, *items: list[int]) -> list[Shard]:
    return [Shard(folder / f"{i}.parquet", numbers, len(numbers)) for i, numbers in enumerate(items)]


def test_run_writes_every_shard_with_one_worker(tmp_path: Path) -> None:
    task, work = Doubling(), shards(tmp_path / "new", [1, 2], [3])
    Local(1, 1).run(task, work, "cpu", "double", "number")
    assert task.events == ["open on cpu", [1, 2], [3], "close"]
    assert [pq.read_table(shard.file)["double"].to_pylist() for shard in work] == [[2, 4], [6]]
    Local(1, 1).run(task, work, "cpu", "double", "number")
    assert len(task.events) == 4


def test_run_after_a_failure_skips_finished_shards(tmp_path: Path) -> None:
    task = Doubling()
    with pytest.raises(RuntimeError):
        Local(1, 1).run(task, shards(tmp_path, [1], [13], [3]), "cpu", "double", "number")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.parquet"]
    assert task.events[-1] == "close"
    resumed = Doubling()
    Local(1, 1).run(resumed, shards(tmp_path, [1], [2], [3]), "cpu", "double", "number")
    assert resumed.events == ["open on cpu", [2], [3], "close"]


def test_write_table_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    write_table(file, pa.table({"a": [1]}))
    with pytest.raises(pa.ArrowNotImplementedError):
        write_table(file, pa.table({"a": pa.array([{}], pa.struct([]))}))  # Parquet has no empty struct
    assert pq.read_table(file)["a"].to_pylist() == [1]


@pytest.mark.parametrize("wrong", [{"prompts_per_shard": 0}, {"texts_per_shard": 0}], ids=str)
def test_local_with_invalid_values_raises(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Local(**{"prompts_per_shard": 1, "texts_per_shard": 1, **wrong})


def test_cut_keeps_all_items_in_order_and_names_files_by_content(tmp_path: Path) -> None:
    items = ["a", "b", "c", "d", "e"]
    shards = cut(items, 2, tmp_path, str, weight=3)
    assert [shard.items for shard in shards] == [["a", "b"], ["c", "d"], ["e"]]
    assert [shard.weight for shard in shards] == [6, 6, 3]
    same = {shard.file: shard.items for shard in cut(items[2:], 2, tmp_path, str)}
    assert same[shards[1].file] == ["c", "d"]  # the same items have the same file
    others = [*cut(items, 1, tmp_path, str), *cut(items, 3, tmp_path, str), *cut(["b", "a"], 2, tmp_path, str)]
    assert {shard.file for shard in shards[:2]}.isdisjoint(shard.file for shard in others)
