import os
from pathlib import Path

import pytest
from computing import write
from used import UsedStore

from selfcontrast.errors import UserError
from selfcontrast.store import MANIFEST, Stage, Store
from selfcontrast.store.catalog import Catalog, Entry
from selfcontrast.store.locks import locked


def entry(catalog: Catalog, name: str) -> Entry:
    (match,) = [e for e in catalog.entries if e.name == name]
    return match


def test_catalog_entries_report_state_size_users_and_owner(used_store: UsedStore) -> None:
    catalog = Catalog.read(used_store.root)
    assert [(e.stage, e.state) for e in catalog.entries] == [
        ("align", "published"),
        ("align", "published"),
        ("generate", "published"),
        ("generate", "abandoned"),
        ("sft", "published"),
        ("sft", "published"),
    ]
    sft = entry(catalog, f"sft/{used_store.sft.key}")
    assert sft.bytes == 5 + (used_store.sft.path / MANIFEST).stat().st_size
    assert sft.runs == (used_store.root.parent / "one",)
    assert {e.key for e in catalog.made_from(sft)} == {used_store.generate.key, used_store.k1.key, used_store.k8.key}
    assert entry(catalog, f"align/{used_store.k8.key}").runs == ()  # the folder of its run is gone
    (partial,) = [e for e in catalog.entries if e.state == "abandoned"]
    assert partial.bytes == 7 + (partial.folder / "begun_with.json").stat().st_size
    assert partial.owner
    assert partial.owner.pid == os.getpid()
    with locked(used_store.root, "generate", partial.key):
        assert entry(Catalog.read(used_store.root), partial.name).state == "in progress"


def test_differing_settings_compares_with_other_artifacts_of_stage(used_store: UsedStore) -> None:
    catalog = Catalog.read(used_store.root)
    assert catalog.differing_settings(entry(catalog, f"sft/{used_store.sft.key}")) == {"optim.lr": "0.001"}
    assert catalog.differing_settings(entry(catalog, f"align/{used_store.k8.key}")) == {"negatives": "8"}
    assert catalog.differing_settings(entry(catalog, f"generate/{used_store.generate.key}")) == {}
    Store(used_store.root).get(Stage("sft", 2, {"optim": None}, {}, write()))
    changed = Catalog.read(used_store.root)
    assert changed.differing_settings(entry(changed, f"sft/{used_store.sft.key}")) == {
        "optim.lr": "0.001",
        "optim.epochs": "3",
        "optim.betas": "[0.9, 0.95]",
        "seed": "1",
        "version": "1",
    }


def test_differing_settings_omits_inputs_that_another_input_uses(used_store: UsedStore) -> None:
    other = Store(used_store.root).get(Stage("generate", 1, {"samples": 4}, {"sft": used_store.old}, write()))
    artifact = Store(used_store.root).get(
        Stage("align", 1, {"negatives": 1, "seed": 1}, {"sft": used_store.old, "negatives": other}, write())
    )
    catalog = Catalog.read(used_store.root)
    assert catalog.differing_settings(entry(catalog, f"generate/{other.key}")) == {
        "inputs.sft": f"sft/{used_store.old.key}"
    }
    assert catalog.differing_settings(entry(catalog, f"align/{artifact.key}")) == {
        "negatives": "1",  # the setting, which has the same name as an input
        "inputs.negatives": f"generate/{other.key}",
    }


def test_catalog_find_needs_a_unique_prefix(used_store: UsedStore) -> None:
    catalog = Catalog.read(used_store.root)
    assert catalog.find(used_store.k1.key[:8]).key == used_store.k1.key
    assert catalog.find(f"align/{used_store.k1.key[:8]}").key == used_store.k1.key
    with pytest.raises(UserError, match=r"^align/: 2 keys start with it \(align/\w{20}, align/\w{20}\)"):
        catalog.find("align/")
    with pytest.raises(UserError, match="no artifact's key"):
        catalog.find("zz")


def test_catalog_damaged_manifest_is_listed_as_unreadable(used_store: UsedStore) -> None:
    (used_store.old.path / MANIFEST).write_text("{}")
    catalog = Catalog.read(used_store.root)
    assert entry(catalog, f"sft/{used_store.old.key}").state == "unreadable"
    assert catalog.inputs_of(entry(catalog, f"generate/{used_store.generate.key}"))["sft"]


def test_catalog_ignores_folders_that_are_not_artifacts(used_store: UsedStore) -> None:
    (used_store.root / "notes").mkdir()
    (used_store.root / "notes" / "todo.txt").touch()
    (used_store.root / "file").touch()
    assert len(Catalog.read(used_store.root).entries) == 6


def test_catalog_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Catalog.read(tmp_path / "none")
