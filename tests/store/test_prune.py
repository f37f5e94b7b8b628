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
from selfcontrast.store.prune import Wish, choose, delete, sweep
from selfcontrast.store.runs import Run, all_runs

DAY = 86400


def chosen(lived: Lived, wish: Wish) -> set[str]:
    return {e.folder.name for e in choose(Catalog.read(lived.root), wish)}


def test_what_no_run_and_no_kept_artifact_uses_goes_and_so_does_what_was_abandoned(lived: Lived) -> None:
    assert chosen(lived, Wish()) == {lived.old.key, lived.eight.key, lived.abandoned.name}


def test_with_the_last_run_its_whole_lineage_goes(lived: Lived) -> None:
    shutil.rmtree(lived.root.parent / "one")
    everything = [lived.old, lived.eight, lived.one, lived.generate, lived.sft]
    assert chosen(lived, Wish()) == {*(a.key for a in everything), lived.abandoned.name}


def test_what_an_artifact_that_stays_is_made_from_stays_over_any_number_of_steps(lived: Lived) -> None:
    shutil.rmtree(lived.root.parent / "one")
    assert chosen(lived, Wish(stages=["sft", "generate"])) == {lived.old.key, lived.abandoned.name}
    assert chosen(lived, Wish(keys=[lived.eight.key, lived.sft.key])) == {lived.eight.key}


def test_used_is_only_chosen_where_that_is_asked_for(lived: Lived) -> None:
    assert chosen(lived, Wish(stages=["sft"])) == {lived.old.key}
    assert chosen(lived, Wish(stages=["sft"], used=True)) == {lived.old.key, lived.sft.key}


def test_age_is_since_the_last_use(lived: Lived) -> None:
    assert chosen(lived, Wish(unused_for=DAY)) == set()
    catalog = Catalog.read(lived.root)
    # As if all had been made and used two days ago, but one had been asked for an hour ago.
    ages = {lived.eight.key: DAY / 24}
    aged = [replace(e, used=e.used - ages.get(e.key, 2 * DAY)) for e in catalog.entries]
    found = choose(Catalog(catalog.root, aged, catalog.runs), Wish(unused_for=DAY))
    assert {e.folder.name for e in found} == {lived.old.key, lived.abandoned.name}


def test_a_use_by_a_run_renews_an_artifact(lived: Lived) -> None:
    for run in all_runs(lived.root):
        os.utime(run.record, (time.time() + DAY,) * 2)
    used = {e.key: e.used - e.created for e in Catalog.read(lived.root).entries}
    assert used[lived.eight.key] > DAY / 2
    assert used[lived.old.key] == 0


def delete_all(lived: Lived, wish: Wish) -> list[bool]:
    return [delete(lived.root, e, wish.used) for e in choose(Catalog.read(lived.root), wish)]


def test_deleting_leaves_the_rest_intact_and_no_litter(lived: Lived) -> None:
    assert delete_all(lived, Wish()) == [True] * 3
    sweep(lived.root)
    left = Catalog.read(lived.root)
    assert {e.key for e in left.entries} == {lived.sft.key, lived.generate.key, lived.one.key}
    assert all(verify(e.folder) is None for e in left.entries)
    assert all_locks(lived.root) == []
    assert not list((lived.root / "trash").iterdir())
    assert [run.folder.name for run in all_runs(lived.root)] == ["one"]
    assert Store(lived.root).get(Stage("generate", 1, {"samples": 4}, {"sft": lived.sft}, never)) == lived.generate


def test_what_a_live_process_holds_is_neither_chosen_nor_deleted(lived: Lived) -> None:
    key = lived.abandoned.stem
    before = choose(Catalog.read(lived.root), Wish(keys=[key]))
    with locked(lived.root, "generate", key):
        assert chosen(lived, Wish()) == {lived.old.key, lived.eight.key}
        assert [delete(lived.root, e, used=True) for e in before] == [False]
        sweep(lived.root)
        assert ("generate", key) in all_locks(lived.root)
    assert (lived.abandoned / "resume" / "shard").exists()
    sweep(lived.root)
    assert all_locks(lived.root) == [("generate", key)]  # whoever comes next learns who abandoned it


def test_what_was_published_since_it_was_chosen_as_abandoned_stays(lived: Lived) -> None:
    before = choose(Catalog.read(lived.root), Wish(keys=[lived.abandoned.stem]))
    Store(lived.root).get(Stage("generate", 1, {"samples": 9}, {"sft": lived.sft}, write()))
    assert [delete(lived.root, e, used=False) for e in before] == [False]
    assert Store(lived.root).get(Stage("generate", 1, {"samples": 9}, {"sft": lived.sft}, never)).cached


@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_run_that_takes_an_artifact_into_use_just_now_keeps_it(
    lived: Lived, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before deletion begins, or between its looking and its taking the name away."""
    (entry,) = choose(Catalog.read(lived.root), Wish(keys=[lived.old.key]))
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
