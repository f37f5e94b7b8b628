"""Test remote stores through fsspec's memory:// and file:// file systems."""

import json
import logging
import os
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
from computing import never, write
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from selfcontrast.errors import UserError
from selfcontrast.store import MANIFEST, Artifact, Stage, Store, verify
from selfcontrast.store.remote import Remote


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/store" if request.param == "memory" else f"file://{tmp_path}/remote/store"


@pytest.fixture
def machine(tmp_path: Path, url: str) -> Iterator[object]:
    """Return a function that makes the store of a new machine. The stores share only the URL."""
    count = iter(range(9))

    def make() -> Store:
        return Store.at(url, tmp_path / f"machine-{next(count)}", tmp_path / "out")

    yield make
    MemoryFileSystem.store.clear()


def remote_path(url: str, artifact: Artifact) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, root = fsspec.url_to_fs(url)
    return fs, f"{root}/{artifact.stage}/{artifact.key}"


def test_remote_artifact_of_one_machine_is_downloaded_by_another(machine, url: str) -> None:
    first, second = machine(), machine()
    artifact = first.get(Stage("sft", 1, {"x": 1}, {}, write("four")))
    downloaded = second.get(Stage("sft", 1, {"x": 1}, {}, never))
    assert downloaded.path == second.root / "sft" / artifact.key
    assert downloaded.manifest == artifact.manifest
    assert downloaded.cached
    assert verify(downloaded.path) is None
    assert (downloaded.path / "sub/file.txt").read_text() == "four"
    assert not list(second.root.rglob("*.download"))


def test_remote_store_uses_its_local_copy_first(machine, url: str) -> None:
    store = machine()
    artifact = store.get(Stage("sft", 1, {}, {}, write()))
    fs, path = remote_path(url, artifact)
    fs.rm(path, recursive=True)
    assert store.get(Stage("sft", 1, {}, {}, never)).cached
    assert fs.exists(f"{path}/{MANIFEST}")  # an artifact in the local copy is uploaded if the remote store lacks it


def test_remote_upload_without_manifest_is_ignored(machine, url: str) -> None:
    artifact = machine().get(Stage("sft", 1, {}, {}, write()))
    fs, path = remote_path(url, artifact)
    fs.rm(f"{path}/{MANIFEST}")
    assert not machine().get(Stage("sft", 1, {}, {}, write())).cached
    assert machine().get(Stage("sft", 1, {}, {}, never)).cached


def test_remote_manifest_is_uploaded_last(machine, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, uploaded = machine(), []
    original = type(store.remote.fs).put_file
    monkeypatch.setattr(
        type(store.remote.fs),
        "put_file",
        lambda self, a, b, **more: (uploaded.append(Path(b).name), original(self, a, b)),
    )

    def compute(folder: Path) -> None:
        for name in ("z", "a", "n"):
            (folder / name).touch()

    store.get(Stage("sft", 1, {}, {}, compute))
    assert len(uploaded) == 4
    assert uploaded[3] == MANIFEST


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda fs, path: fs.pipe_file(f"{path}/sub/file.txt", b"Content"),
            "sub/file.txt has changed since it was written",
        ),
        (lambda fs, path: fs.rm(f"{path}/sub/file.txt"), "sub/file.txt is missing"),
        (lambda fs, path: fs.pipe_file(f"{path}/{MANIFEST}", b'{"fi'), "unreadable manifest"),
        (lambda fs, path: fs.pipe_file(f"{path}/{MANIFEST}", b"{}"), "unreadable manifest"),
        (
            lambda fs, path: fs.pipe_file(f"{path}/{MANIFEST}", json.dumps({"files": {"../../../x": ""}}).encode()),
            "../../../x does not belong there",
        ),
    ],
)
def test_remote_damaged_artifact_is_recomputed_and_replaced(
    machine, url: str, caplog: pytest.LogCaptureFixture, damage, message: str
) -> None:
    damage(*remote_path(url, machine().get(Stage("sft", 1, {}, {}, write()))))
    second = machine()
    with caplog.at_level(logging.WARNING):
        artifact = second.get(Stage("sft", 1, {}, {}, write()))
    assert f"{message}. Recomputing" in caplog.text
    assert not artifact.cached
    assert verify(artifact.path) is None
    assert not list(second.root.rglob("*.download"))
    assert machine().get(Stage("sft", 1, {}, {}, never)).cached


def test_remote_failed_upload_warns_and_is_retried(
    machine, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine()

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    with monkeypatch.context() as broken:
        broken.setattr(type(store.remote.fs), "put_file", refuse)
        artifact = store.get(Stage("sft", 1, {}, {}, write()))
    assert f"{url}/sft/{artifact.key}: not uploaded (ConnectionError: no route)" in caplog.text
    store.get(Stage("sft", 1, {}, {}, never))
    assert machine().get(Stage("sft", 1, {}, {}, never)).cached


def test_remote_unreachable_fails_before_computing(machine, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machine()

    def refuse(*_: object, **__: object) -> bool:
        raise ConnectionError("no route")

    monkeypatch.setattr(type(store.remote.fs), "exists", refuse)
    with pytest.raises(UserError, match=rf"store={url}: cannot be reached \(ConnectionError: no route\)"):
        store.get(Stage("sft", 1, {}, {}, never))


def test_remote_full_disk_while_downloading_is_reported(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine().get(Stage("sft", 1, {}, {}, write()))
    second = machine()

    def fill(self: object, there: str, here: str, **_: object) -> None:
        Path(here).write_text("ha")
        with open("/dev/full", "w") as full:
            full.write("lf")

    monkeypatch.setattr(type(second.remote.fs), "get_file", fill)
    with pytest.raises(UserError, match=f"store={second.root}: {os.strerror(28)}"):
        second.get(Stage("sft", 1, {}, {}, never))
    assert not list(second.root.rglob("*.download"))


# --- urls


def test_remote_missing_package_is_named() -> None:
    packages = {name: known["class"].split(".")[0] for name, known in known_implementations.items()}
    name, package = next((n, p) for n, p in packages.items() if find_spec(p) is None)
    with pytest.raises(UserError, match=rf"^store={name}://x/y: .*pip install {package}$"):
        Remote(f"{name}://x/y")


def test_remote_unknown_protocol_is_refused() -> None:
    with pytest.raises(UserError, match=r"^store=s4://x/y: .*s4"):
        Remote("s4://x/y")


def test_remote_url_with_password_is_refused_without_printing_it() -> None:
    with pytest.raises(UserError) as raised:
        Remote("s3://me:planted-secret@bucket/x")
    assert "planted-secret" not in str(raised.value)
