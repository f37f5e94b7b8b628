"""Test the record of the code that computes artifacts: its files, and what happens when they change."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from computing import never, write

from selfcontrast.errors import UserError
from selfcontrast.store import RESUME, Artifact, Stage, Store
from selfcontrast.store import code as codes
from selfcontrast.store.__main__ import main
from selfcontrast.store.artifact import read_manifest
from selfcontrast.store.code import changed, code_of
from selfcontrast.store.remote import Remote
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
    """Create a package whose module `till` imports all others except `unused`, directly or through another module.

    One import is inside a function, and one closes a cycle.
    """
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    clear_caches()
    return tmp_path / "shop"


def clear_caches() -> None:
    """Clear the caches, as in a new process."""
    codes._text.cache_clear()
    codes._read.cache_clear()


def test_code_of_module_lists_imported_files_of_its_package(shop: Path) -> None:
    assert set(code_of(["shop.till"])) == {name for name in FILES if "__init__" not in name} - {"shop/unused.py"}
    assert set(code_of(["shop.tax"])) == {"shop/tax.py"}
    assert not {name for name in sys.modules if name.partition(".")[0] == "shop"}  # `code_of` imports no module


def test_code_of_modules_without_files_is_empty() -> None:
    assert code_of(["__main__", "sys", "json.nothing", "no_such_package.module"]) == {}


def test_code_of_omits_type_checking_imports(shop: Path) -> None:
    (shop / "tax.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from shop import till\nelse:\n    from shop import prices\n"
    )
    (shop / "prices.py").write_text("")
    assert set(code_of(["shop.tax"])) == {"shop/tax.py", "shop/prices.py"}


def test_changed_lists_differing_files(shop: Path) -> None:
    before = code_of(["shop.till"])
    (shop / "tax.py").write_text("rate = 2\n")
    (shop / "deep" / "table.py").write_text("import shop.unused\n")
    assert code_of(["shop.till"]) == before  # this process still runs the old code
    clear_caches()
    assert changed(before, code_of(["shop.till"])) == ["shop/deep/table.py", "shop/tax.py", "shop/unused.py"]
    assert changed(before, before) == []


@dataclass(frozen=True)
class Part:
    fraction: float


def test_stage_code_covers_its_module_and_components() -> None:
    stage = Stage("stage", 1, {"parts": [Part(0.5)]}, {}, never, "selfcontrast.errors")
    assert set(stage.code) == {"selfcontrast/errors.py", *code_of([__name__])}
    assert any(name.endswith("test_code.py") for name in stage.code)


def test_stage_key_ignores_module_of_class_from_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert class_name(Store) == "Store"
    key = Stage("stage", 1, {"part": Part(0.5)}, {}, never).key
    monkeypatch.setattr(Part, "__module__", "selfcontrast.one")
    key_in_package = Stage("stage", 1, {"part": Part(0.5)}, {}, never).key
    monkeypatch.setattr(Part, "__module__", "selfcontrast.another")
    assert Stage("stage", 1, {"part": Part(0.5)}, {}, never).key == key_in_package != key


def test_stage_key_depends_on_module_of_class_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for module in ("mine.one", "mine.two"):
        monkeypatch.setattr(Part, "__module__", module)
        keys.add(Stage("stage", 1, {"part": Part(0.5)}, {}, never).key)
    assert len(keys) == 2


def test_code_of_accepts_syntax_errors_and_namespace_packages(shop: Path) -> None:
    (shop / "tax.py").write_text("rate = (\n")
    (shop / "__init__.py").unlink()
    assert set(code_of(["shop.tax"])) == {"shop/tax.py"}


def test_code_of_training_excludes_report() -> None:
    paths = code_of(["selfcontrast.training.align"])
    assert "selfcontrast/losses.py" in paths
    assert "selfcontrast/training/packed_module.py" in paths
    assert not [name for name in paths if name.startswith(("selfcontrast/report", "selfcontrast/cli"))]


def test_code_of_evaluation_excludes_benchmarks() -> None:
    paths = code_of(["selfcontrast.evaluation.evaluate"])
    assert "selfcontrast/evaluation/likelihood.py" in paths
    others = ("selfcontrast/evaluation/benchmarks", "selfcontrast/evaluation/judges")
    assert not [name for name in paths if name.startswith(others)]


def test_manifest_records_code(tmp_path: Path) -> None:
    artifact = Store(tmp_path).get(Stage("stage", 1, {}, {}, write(), "selfcontrast.errors"))
    assert read_manifest(artifact.path)["code"] == code_of(["selfcontrast.errors"])


# --- recomputing


def chain(store: Store, text: str = "one", again_before: float = 0.0, history: str = "") -> list[Artifact]:
    """Return three artifacts. The first holds `text`. Each of the others copies the one before it."""

    def first(folder: Path) -> None:
        (folder / "text").write_text(text)
        (folder / "history.json").write_text(history)

    def copy(source: Artifact) -> Callable[[Path], None]:
        return lambda folder: (folder / "text").write_text((source.path / "text").read_text()) and None

    artifacts = [store.get(Stage("first", 1, {}, {}, first), again_before)]
    for name in ("second", "third"):
        artifacts.append(store.get(Stage(name, 1, {}, {"input": artifacts[-1]}, copy(artifacts[-1]))))
    return artifacts


FUTURE = time.time() + 1e6  # passed as `again_before`: artifacts made before this time are recomputed


def texts(artifacts: list[Artifact]) -> list[str]:
    return [(artifact.path / "text").read_text() for artifact in artifacts]


def test_recomputed_artifact_with_new_result_recomputes_dependents(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [artifact.key for artifact in chain(store)]
    recomputed = chain(store, "two", FUTURE)
    assert texts(recomputed) == ["two"] * 3
    assert [artifact.cached for artifact in recomputed] == [False] * 3
    assert [artifact.key for artifact in recomputed] == keys
    assert all(artifact.cached for artifact in chain(store, "three"))  # all are cached, so "three" is not written


def test_recomputed_artifact_with_same_result_keeps_dependents(tmp_path: Path) -> None:
    """history.json holds timings, which no stage reads."""
    chain(Store(tmp_path), history="1 s")
    assert [artifact.cached for artifact in chain(Store(tmp_path), again_before=FUTURE, history="2 s")] == [
        False,
        True,
        True,
    ]


def test_get_again_before_keeps_artifact_made_after_that_time(tmp_path: Path) -> None:
    store, start = Store(tmp_path), time.time() - 1
    assert not chain(store, again_before=start)[0].cached
    assert all(artifact.cached for artifact in chain(store, "two", start))


def test_failed_recomputation_keeps_old_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    chain(store)
    with pytest.raises(AssertionError, match="computed again"):
        store.get(Stage("first", 1, {}, {}, never), FUTURE)
    assert all(artifact.cached for artifact in chain(store, "two"))


def test_resume_state_of_other_inputs_is_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, *_ = chain(store)

    def interrupted(folder: Path) -> None:
        (folder / RESUME).mkdir()
        (folder / RESUME / "half").write_text((first.path / "text").read_text())
        raise KeyboardInterrupt

    def resume(folder: Path) -> dict[str, bool]:
        return {"resumed": (folder / RESUME / "half").exists()}

    with pytest.raises(KeyboardInterrupt):
        store.get(Stage("fourth", 1, {}, {"input": first}, interrupted))
    other, *_ = chain(store, "two", FUTURE)
    assert store.get(Stage("fourth", 1, {}, {"input": other}, resume)).summary == {"resumed": False}
    with pytest.raises(KeyboardInterrupt):
        store.get(Stage("fifth", 1, {}, {"input": other}, interrupted))
    assert store.get(Stage("fifth", 1, {}, {"input": other}, resume)).summary == {"resumed": True}
    assert not list(tmp_path.glob("*/*/begun_with.json"))  # a published artifact does not have this file


def test_resume_state_of_other_code_is_deleted_when_recomputing(
    tmp_path: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path) -> None:
        (folder / RESUME).mkdir(exist_ok=True)
        raise KeyboardInterrupt

    def resume(folder: Path) -> dict[str, bool]:
        return {"resumed": (folder / RESUME).exists()}

    store = Store(tmp_path / "store")
    store.get(Stage("stage", 1, {}, {}, write(), "shop.tax"))
    for edited, resumed in ((False, True), (True, False)):
        with pytest.raises(KeyboardInterrupt):
            store.get(Stage("stage", 1, {}, {}, interrupted, "shop.tax"), FUTURE)
        if edited:
            (shop / "tax.py").write_text("rate = 3\n")
            clear_caches()
        assert store.get(Stage("stage", 1, {}, {}, resume, "shop.tax"), FUTURE).summary == {"resumed": resumed}


def test_get_input_recomputed_meanwhile_raises(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, *_ = chain(store)

    def recompute_input(folder: Path) -> None:
        chain(Store(tmp_path), "two", FUTURE)

    with pytest.raises(UserError, match="another process recomputed its input"):
        store.get(Stage("fourth", 1, {}, {"input": first}, recompute_input))
    assert not [file for file in tmp_path.glob("fourth/*") if "." not in file.name]


def test_remote_stale_artifact_is_replaced(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'remote'}"

    def store_on(machine: str) -> Store:
        return Store(tmp_path / machine, remote=Remote(url))

    chain(store_on("one"))
    assert texts(chain(store_on("one"), "two", FUTURE)) == ["two"] * 3
    assert texts(chain(store_on("two"), "never")) == ["two"] * 3  # downloaded
    assert (
        texts(chain(store_on("three"), "three", FUTURE)) == ["three"] * 3
    )  # not downloaded, because it must be recomputed
    assert texts(chain(store_on("four"), "never")) == ["three"] * 3


# --- store diff


def test_diff_prints_settings_inputs_and_code(tmp_path: Path, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    artifacts = []
    for fraction in (0.25, 0.5):
        (shop / "tax.py").write_text(f"rate = {fraction}\n")
        clear_caches()
        first = store.get(Stage("first", 1, {"selector": {"fraction": fraction}}, {}, write(), "shop.tax"))
        artifacts.append(store.get(Stage("second", 1, {"lr": 1}, {"candidates": first}, write(str(fraction)))))
    old, new = artifacts
    assert main(["diff", old.key[:8], new.key[:8], "--store", str(store.root)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "second > candidates" in lines
    assert "selector.fraction: 0.25 → 0.5" in lines
    assert any(line.startswith("code shop/tax.py: ") for line in lines)
    assert any(line.startswith("input candidates: ") for line in lines)
    assert not any(line.startswith("lr") for line in lines)
    assert main(["diff", old.key, old.key, "--store", str(store.root)]) == 0
    assert "no difference" in capsys.readouterr().out


def test_diff_of_different_stages_is_refused(tmp_path: Path) -> None:
    keys = [artifact.key for artifact in chain(Store(tmp_path))]
    with pytest.raises(UserError, match="different stages"):
        main(["diff", keys[0], keys[1], "--store", str(tmp_path)])
