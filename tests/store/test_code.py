"""The code that artifacts are made by: which files decide one, and what is said and done when they change."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from computing import never, write

from selfcontrast.store import MANIFEST, Stage, Store
from selfcontrast.store import store as stores
from selfcontrast.store.__main__ import main
from selfcontrast.store.artifact import read_manifest
from selfcontrast.store.code import changed, code_of
from selfcontrast.store.settings import class_name

FILES = {
    "shop/__init__.py": "",
    "shop/till.py": "from shop import prices\nfrom .tax import rate\nimport json\n",
    "shop/prices.py": "def of(x):\n    from shop.deep import table\n    return x\n",
    "shop/tax.py": "rate = 1\n",
    "shop/deep/__init__.py": "",
    "shop/deep/table.py": "from ..till import x\nfrom ... import nothing\n",
    "shop/unused.py": "",
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose module `till` imports all others but `unused`, one of them in a function, one in a ring."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "shop"


def test_code_of_module_is_every_file_of_its_package_that_it_imports(shop: Path) -> None:
    assert set(code_of(["shop.till"])) == set(FILES) - {"shop/unused.py"}
    assert set(code_of(["shop.tax"])) == {"shop/tax.py"}
    assert not {name for name in sys.modules if name.partition(".")[0] == "shop"}  # looked at, not imported


def test_code_of_names_that_are_no_files_is_nothing() -> None:
    assert code_of(["__main__", "sys", "json.nothing", "no_such_package.module"]) == {}


def test_code_changed_names_the_files_that_differ(shop: Path) -> None:
    before = code_of(["shop.till"])
    (shop / "tax.py").write_text("rate = 2\n")
    (shop / "deep" / "table.py").write_text("import shop.unused\n")
    assert changed(before, code_of(["shop.till"])) == ["shop/deep/table.py", "shop/tax.py", "shop/unused.py"]
    assert changed(before, before) == []


@dataclass(frozen=True)
class Part:
    share: float


def test_stage_code_is_that_of_its_module_and_of_its_components() -> None:
    stage = Stage("stage", 1, {"parts": [Part(0.5)]}, {}, never, "selfcontrast.errors")
    assert set(stage.code) == {"selfcontrast/errors.py", *code_of([__name__])}
    assert any(name.endswith("test_code.py") for name in stage.code)


def test_key_moved_class_same(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Stage("stage", 1, {"part": Part(0.5)}, {}, never).key
    monkeypatch.setattr(Part, "__module__", f"{__name__.partition('.')[0]}.elsewhere")
    assert Stage("stage", 1, {"part": Part(0.5)}, {}, never).key == key
    monkeypatch.setattr(Part, "__module__", "another_package.elsewhere")
    assert Stage("stage", 1, {"part": Part(0.5)}, {}, never).key != key
    assert class_name(Store) == "Store"


def test_manifest_holds_code_of_its_computation(tmp_path: Path) -> None:
    artifact = Store(tmp_path).get(Stage("stage", 1, {}, {}, write(), "selfcontrast.errors"))
    assert read_manifest(artifact.path)["code"] == code_of(["selfcontrast.errors"])


# --- computing again


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with a chain of three, all from before this process began."""
    store = Store(tmp_path / "store")
    first = store.get(Stage("first", 1, {}, {}, write("one")))
    second = store.get(Stage("second", 1, {}, {"input": first}, write("two")))
    store.get(Stage("third", 1, {}, {"input": second}, write("three")))
    monkeypatch.setattr(stores, "BEGUN", max(a.created for a in (first, second)) + 1000)
    return store


def published(store: Store) -> set[str]:
    return {file.parent.parent.name for file in store.root.glob(f"*/*/{MANIFEST}")}


def test_get_again_with_another_result_deletes_what_was_made_from_the_old_one(old: Store) -> None:
    assert published(old) == {"first", "second", "third"}
    first = old.get(Stage("first", 1, {}, {}, write("another")), again=True)
    assert not first.cached
    assert (first.path / "sub" / "file.txt").read_text() == "another"
    assert published(old) == {"first"}


def test_get_again_with_the_same_result_keeps_what_was_made_from_it(old: Store) -> None:
    assert not old.get(Stage("first", 1, {}, {}, write("one")), again=True).cached
    assert published(old) == {"first", "second", "third"}


def test_get_again_happens_once_per_process(old: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old.get(Stage("first", 1, {}, {}, write("another")), again=True)
    monkeypatch.setattr(stores, "BEGUN", 0)
    assert old.get(Stage("first", 1, {}, {}, never), again=True).cached


def test_get_again_that_fails_leaves_the_old_artifacts(old: Store) -> None:
    with pytest.raises(AssertionError, match="computed again"):
        old.get(Stage("first", 1, {}, {}, never), again=True)
    assert published(old) == {"first", "second", "third"}
    assert old.get(Stage("first", 1, {}, {}, never)).cached


# --- store diff


def test_diff_says_settings_inputs_and_code(tmp_path: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    made = []
    for share in (0.25, 0.5):
        (shop / "tax.py").write_text(f"rate = {share}\n")
        first = store.get(Stage("first", 1, {"selector": {"share": share}}, {}, write(), "shop.tax"))
        made.append(store.get(Stage("second", 1, {"lr": 1}, {"candidates": first}, write(str(share)))))
    one, other = made
    assert main(["diff", one.key[:8], other.key[:8], "--store", str(store.root)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "second > candidates" in lines
    assert "selector.share: 0.25 → 0.5" in lines
    assert any(line.startswith("code shop/tax.py: ") for line in lines)
    assert any(line.startswith("input candidates: ") for line in lines)
    assert not any(line.startswith("lr") for line in lines)
    assert main(["diff", one.key, one.key, "--store", str(store.root)]) == 0
    assert "no difference" in capsys.readouterr().out


def test_diff_of_two_stages_refused(old: Store) -> None:
    from selfcontrast.errors import UserError
    from selfcontrast.store.catalog import Catalog

    keys = [entry.key for entry in Catalog.read(old.root).published]
    with pytest.raises(UserError, match="two stages"):
        main(["diff", keys[0], keys[1], "--store", str(old.root)])
