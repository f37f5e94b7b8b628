"""Test that a file edited while or after it is read never leads to an artifact under a wrong key."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data import hub as hub_module
from selfcontrast.data import jsonl as jsonl_module
from selfcontrast.data import release as release_module
from selfcontrast.data.example import Source
from selfcontrast.data.hub import Hub, Part
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.data.release import Release
from selfcontrast.errors import UserError
from selfcontrast.generators import importer
from selfcontrast.generators.importer import Import
from selfcontrast.models.loading import Pretrained
from selfcontrast.store.content import Content
from tiny import policy_folder


def jsonl_lines(word: str) -> str:
    rows = [{"prompt": f"Name fruit number {i}.", "target": f"A {word}.", "responses": ["A car."]} for i in range(24)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def release_lines(word: str) -> str:
    rows = [{"instruction": f"Name fruit {i}.", "history": [], "output": [f"A {word}.", "A car."]} for i in range(24)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def source(kind: str, folder: Path) -> tuple[Source, Path]:
    """Return a data source of this kind, and the file with its training rows."""
    if kind == "release":
        file = folder / "Set" / "DPO" / "train.jsonl"
        file.parent.mkdir(parents=True)
        test_file = folder / "Set" / "test.jsonl"
        test_file.write_text(release_lines("plum").replace("Name", "Give"))
        file.write_text(release_lines("pear"))
        return Release(str(folder), "Set", "DPO", "test.jsonl", 0.1), file
    file = folder / "data.jsonl"
    file.write_text(jsonl_lines("pear"))
    if kind == "jsonl":
        return Jsonl(str(file), 0.1, 0.1, None, None, "required"), file
    part = Part(str(file), None, None, "train", None, None)
    return Hub(part, None, 0.1, 0.1, None, None, True), file


MODULES: dict[str, Any] = {"jsonl": jsonl_module, "hub": hub_module, "release": release_module, "import": importer}
KINDS = ["jsonl", "hub", "release"]


def edit(file: Path, word: str = "plum") -> None:
    """Replace the file, as editors do, but keep its size and modification time."""
    before = file.stat()
    other = file.with_suffix(".new")
    other.write_text(file.read_text().replace("A pear.", f"A {word}."))
    os.replace(other, file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_after_an_edit_describes_the_rows_read(kind: str, tmp_path: Path) -> None:
    data, file = source(kind, tmp_path)
    before = data.fingerprint()
    rows = data.load()
    edit(file)
    assert data.fingerprint() == before
    assert {example.target for example in rows["train"]} == {"A pear."}
    assert {example.target for example in data.load()["train"]} == {"A plum."}
    assert data.fingerprint() != before


@pytest.mark.parametrize("kind", KINDS)
def test_load_of_a_file_edited_while_reading_raises(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, file = source(kind, tmp_path)
    original = MODULES[kind].read_examples

    def read_examples(*args: Any, **options: Any) -> Any:
        edit(file)
        return original(*args, **options)

    monkeypatch.setattr(MODULES[kind], "read_examples", read_examples)
    with pytest.raises(UserError, match=r"^data\..* has changed"):
        data.load()


def test_import_of_a_file_edited_while_reading_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(jsonl_lines("pear"))
    generator = Import(None, 100, 0, path=str(file))
    before = generator.fingerprint()
    assert generator.samples == 1
    edit(file)
    assert generator.fingerprint() == before != Import(None, 100, 0, path=str(file)).fingerprint()
    original = importer.read_folder

    def read_folder(*args: Any) -> Iterator[Any]:
        yield from original(*args)
        edit(file, "fig!")

    file.write_text(jsonl_lines("pear"))
    monkeypatch.setattr(importer, "read_folder", read_folder)
    with pytest.raises(UserError, match=r"generator\.path=.* has changed"):
        _ = Import(None, 100, 0, path=str(file)).samples


def test_pretrained_folder_changed_before_loading_raises(tmp_path: Path) -> None:
    folder = policy_folder(tmp_path / "model")
    model = Pretrained(str(folder), None, None, [], "float32", False, True)
    key = model.fingerprint()
    model.start([], 0)
    policy_folder(folder, seed=1)
    with pytest.raises(UserError, match=r"model\.path=.* has changed"):
        model.start([], 0)
    assert model.fingerprint() != key
    model.start([], 0)


def test_content_of_a_new_file_compares_bytes(tmp_path: Path) -> None:
    """A file may be written twice within one clock tick, with the same time stamps."""
    file = tmp_path / "a"
    file.write_text("one")
    content = Content.of(file)
    assert not content.settled
    content.check("data.path")
    stale = Content(file, "another hash", content.stamp, settled=False)
    with pytest.raises(UserError, match="has changed"):
        stale.check("data.path")
    file.unlink()
    with pytest.raises(UserError, match="has changed"):
        content.check("data.path")
