import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from computing import never, write
from used import UsedStore

from selfcontrast.store import Artifact, Stage, Store, prune, verify
from selfcontrast.store.catalog import Catalog
from selfcontrast.store.locks import all_locks, locked
from selfcontrast.store.prune import PruneQuery, choose, delete, sweep
from selfcontrast.store.runs import Run, all_runs

DAY = 86400


def chosen(used_store: UsedStore, query: PruneQuery) -> set[str]:
    return {e.folder.name for e in choose(Catalog.read(used_store.root), query)}


def test_prune_chooses_unused_and_abandoned_entries(used_store: UsedStore) -> None:
    assert chosen(used_store, PruneQuery()) == {used_store.old.key, used_store.k8.key, used_store.abandoned.name}


def test_prune_after_last_run_chooses_whole_lineage(used_store: UsedStore) -> None:
    shutil.rmtree(used_store.root.parent / "one")
    everything = [used_store.old, used_store.k8, used_store.k1, used_store.generate, used_store.sft]
    assert chosen(used_store, PruneQuery()) == {*(a.key for a in everything), used_store.abandoned.name}


def test_prune_keeps_all_ancestors_of_kept_artifact(used_store: UsedStore) -> None:
    shutil.rmtree(used_store.root.parent / "one")
    assert chosen(used_store, PruneQuery(stages=["sft", "generate"])) == {used_store.old.key, used_store.abandoned.name}
    assert chosen(used_store, PruneQuery(keys=[used_store.k8.key, used_store.sft.key])) == {used_store.k8.key}


def test_prune_chooses_used_entries_only_with_option_used(used_store: UsedStore) -> None:
    assert chosen(used_store, PruneQuery(stages=["sft"])) == {used_store.old.key}
    assert chosen(used_store, PruneQuery(stages=["sft"], used=True)) == {used_store.old.key, used_store.sft.key}


def test_prune_unused_for_counts_from_last_use(used_store: UsedStore) -> None:
    assert chosen(used_store, PruneQuery(unused_for=DAY)) == set()
    catalog = Catalog.read(used_store.root)
    # Pretend that all entries were last used two days ago, except one, which was used an hour ago.
    ages = {used_store.k8.key: DAY / 24}
    aged = [replace(e, used=e.used - ages.get(e.key, 2 * DAY)) for e in catalog.entries]
    entries = choose(Catalog(catalog.root, aged, catalog.runs), PruneQuery(unused_for=DAY))
    assert {e.folder.name for e in entries} == {used_store.old.key, used_store.abandoned.name}


def test_prune_run_record_counts_as_use_of_its_artifacts(used_store: UsedStore) -> None:
    for run in all_runs(used_store.root):
        os.utime(run.record, (time.time() + DAY,) * 2)
    used = {e.key: e.used - e.created for e in Catalog.read(used_store.root).entries}
    assert used[used_store.k8.key] > DAY / 2
    assert used[used_store.old.key] == 0


def delete_all(used_store: UsedStore, query: PruneQuery) -> list[bool]:
    return [delete(used_store.root, e, query.used) for e in choose(Catalog.read(used_store.root), query)]


def test_delete_keeps_other_entries_intact_and_leaves_no_traces(used_store: UsedStore) -> None:
    assert delete_all(used_store, PruneQuery()) == [True] * 3
    sweep(used_store.root)
    remaining = Catalog.read(used_store.root)
    assert {e.key for e in remaining.entries} == {used_store.sft.key, used_store.generate.key, used_store.k1.key}
    assert all(verify(e.folder) is None for e in remaining.entries)
    assert all_locks(used_store.root) == []
    assert not list((used_store.root / "trash").iterdir())
    assert [run.folder.name for run in all_runs(used_store.root)] == ["one"]
    assert (
        Store(used_store.root).get(Stage("generate", 1, {"samples": 4}, {"sft": used_store.sft}, never))
        == used_store.generate
    )


def test_prune_skips_entries_locked_by_live_process(used_store: UsedStore) -> None:
    key = used_store.abandoned.stem
    before = choose(Catalog.read(used_store.root), PruneQuery(keys=[key]))
    with locked(used_store.root, "generate", key):
        assert chosen(used_store, PruneQuery()) == {used_store.old.key, used_store.k8.key}
        assert [delete(used_store.root, e, used=True) for e in before] == [False]
        sweep(used_store.root)
        assert ("generate", key) in all_locks(used_store.root)
    assert (used_store.abandoned / "resume" / "shard").exists()
    sweep(used_store.root)
    assert all_locks(used_store.root) == [("generate", key)]  # it tells the next process who abandoned the artifact


def test_delete_keeps_entry_published_meanwhile(used_store: UsedStore) -> None:
    before = choose(Catalog.read(used_store.root), PruneQuery(keys=[used_store.abandoned.stem]))
    Store(used_store.root).get(Stage("generate", 1, {"samples": 9}, {"sft": used_store.sft}, write()))
    assert [delete(used_store.root, e, used=False) for e in before] == [False]
    assert Store(used_store.root).get(Stage("generate", 1, {"samples": 9}, {"sft": used_store.sft}, never)).cached


@pytest.mark.parametrize("moment", ["before", "between"])
def test_delete_keeps_artifact_that_a_run_just_started_to_use(
    used_store: UsedStore, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run starts before `delete`, or after `delete` has checked the entry but has not yet moved its folder."""
    (entry,) = choose(Catalog.read(used_store.root), PruneQuery(keys=[used_store.old.key]))
    output = used_store.root.parent / "new"
    output.mkdir()
    settings = {"optim": {"lr": 0.1, "epochs": 3, "betas": [0.9, 0.95]}, "seed": 1}

    def use() -> Artifact:
        return Store(used_store.root, Run(used_store.root, output)).get(Stage("sft", 1, settings, {}, never))

    original = prune.trash.discard

    def using_first(root: Path, path: Path) -> Path:
        use()
        return original(root, path)

    if moment == "before":
        use()
        monkeypatch.setattr(prune.trash, "discard", never)  # the folder is never moved, not even briefly
    else:
        monkeypatch.setattr(prune.trash, "discard", using_first)
    assert not delete(used_store.root, entry, used=False)
    assert use() == used_store.old
