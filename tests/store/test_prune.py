import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from computing import never, write

from conftest import Lived
from selfcontrast.store import Artifact, Stage, Store, prune, verify
from selfcontrast.store.catalog import Catalog
from selfcontrast.store.locks import all_locks, locked
from selfcontrast.store.prune import PruneQuery, choose, delete, sweep
from selfcontrast.store.runs import Run, all_runs

DAY = 86400


def chosen(lived: Lived, query: PruneQuery) -> set[str]:
    return {e.folder.name for e in choose(Catalog.read(lived.root), query)}


def test_prune_chooses_unused_and_abandoned_entries(lived: Lived) -> None:
    assert chosen(lived, PruneQuery()) == {lived.old.key, lived.eight.key, lived.abandoned.name}


def test_prune_after_last_run_chooses_whole_lineage(lived: Lived) -> None:
    shutil.rmtree(lived.root.parent / "one")
    everything = [lived.old, lived.eight, lived.one, lived.generate, lived.sft]
    assert chosen(lived, PruneQuery()) == {*(a.key for a in everything), lived.abandoned.name}


def test_prune_keeps_all_ancestors_of_kept_artifact(lived: Lived) -> None:
    shutil.rmtree(lived.root.parent / "one")
    assert chosen(lived, PruneQuery(stages=["sft", "generate"])) == {lived.old.key, lived.abandoned.name}
    assert chosen(lived, PruneQuery(keys=[lived.eight.key, lived.sft.key])) == {lived.eight.key}


def test_prune_chooses_used_entries_only_with_used(lived: Lived) -> None:
    assert chosen(lived, PruneQuery(stages=["sft"])) == {lived.old.key}
    assert chosen(lived, PruneQuery(stages=["sft"], used=True)) == {lived.old.key, lived.sft.key}


def test_prune_unused_for_counts_from_last_use(lived: Lived) -> None:
    assert chosen(lived, PruneQuery(unused_for=DAY)) == set()
    catalog = Catalog.read(lived.root)
    # As if all had been made and used two days ago, but one had been asked for an hour ago.
    ages = {lived.eight.key: DAY / 24}
    aged = [replace(e, used=e.used - ages.get(e.key, 2 * DAY)) for e in catalog.entries]
    entries = choose(Catalog(catalog.root, aged, catalog.runs), PruneQuery(unused_for=DAY))
    assert {e.folder.name for e in entries} == {lived.old.key, lived.abandoned.name}


def test_prune_use_by_run_renews_artifact(lived: Lived) -> None:
    for run in all_runs(lived.root):
        os.utime(run.record, (time.time() + DAY,) * 2)
    used = {e.key: e.used - e.created for e in Catalog.read(lived.root).entries}
    assert used[lived.eight.key] > DAY / 2
    assert used[lived.old.key] == 0


def delete_all(lived: Lived, query: PruneQuery) -> list[bool]:
    return [delete(lived.root, e, query.used) for e in choose(Catalog.read(lived.root), query)]


def test_delete_leaves_rest_intact_and_no_leftovers(lived: Lived) -> None:
    assert delete_all(lived, PruneQuery()) == [True] * 3
    sweep(lived.root)
    left = Catalog.read(lived.root)
    assert {e.key for e in left.entries} == {lived.sft.key, lived.generate.key, lived.one.key}
    assert all(verify(e.folder) is None for e in left.entries)
    assert all_locks(lived.root) == []
    assert not list((lived.root / "trash").iterdir())
    assert [run.folder.name for run in all_runs(lived.root)] == ["one"]
    assert Store(lived.root).get(Stage("generate", 1, {"samples": 4}, {"sft": lived.sft}, never)) == lived.generate


def test_prune_skips_entries_locked_by_live_process(lived: Lived) -> None:
    key = lived.abandoned.stem
    before = choose(Catalog.read(lived.root), PruneQuery(keys=[key]))
    with locked(lived.root, "generate", key):
        assert chosen(lived, PruneQuery()) == {lived.old.key, lived.eight.key}
        assert [delete(lived.root, e, used=True) for e in before] == [False]
        sweep(lived.root)
        assert ("generate", key) in all_locks(lived.root)
    assert (lived.abandoned / "resume" / "shard").exists()
    sweep(lived.root)
    assert all_locks(lived.root) == [("generate", key)]  # whoever comes next learns who abandoned it


def test_delete_keeps_entry_published_meanwhile(lived: Lived) -> None:
    before = choose(Catalog.read(lived.root), PruneQuery(keys=[lived.abandoned.stem]))
    Store(lived.root).get(Stage("generate", 1, {"samples": 9}, {"sft": lived.sft}, write()))
    assert [delete(lived.root, e, used=False) for e in before] == [False]
    assert Store(lived.root).get(Stage("generate", 1, {"samples": 9}, {"sft": lived.sft}, never)).cached


@pytest.mark.parametrize("moment", ["before", "between"])
def test_delete_keeps_artifact_that_a_run_just_started_to_use(
    lived: Lived, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before deletion begins, or between its looking and its taking the name away."""
    (entry,) = choose(Catalog.read(lived.root), PruneQuery(keys=[lived.old.key]))
    output = lived.root.parent / "new"
    output.mkdir()
    settings = {"optim": {"lr": 0.1, "epochs": 3, "betas": [0.9, 0.95]}, "seed": 1}

    def use() -> Artifact:
        return Store(lived.root, Run(lived.root, output)).get(Stage("sft", 1, settings, {}, never))

    original = prune.trash.discard

    def using_first(root: Path, path: Path) -> Path:
        use()
        return original(root, path)

    if moment == "before":
        use()
        monkeypatch.setattr(prune.trash, "discard", never)  # its files are not even gone for a moment
    else:
        monkeypatch.setattr(prune.trash, "discard", using_first)
    assert not delete(lived.root, entry, used=False)
    assert use() == lived.old
