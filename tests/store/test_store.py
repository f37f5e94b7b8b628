import hashlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from computing import never, write
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.generators.hf import HF
from selfcontrast.store import MANIFEST, NOT_IN_KEY, RESUME, Artifact, Stage, Store, canonical, settings_of, verify
from selfcontrast.store import artifact as contents
from selfcontrast.training.hardware import Hardware

fork = multiprocessing.get_context("fork")

Scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
Texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
Json = st.recursive(
    Scalars | Texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(Texts, inner, max_size=3),
    max_leaves=8,
)
Settings = st.dictionaries(Texts, Json, max_size=4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def reverse_keys(value: Any) -> Any:
    """Return equal JSON, with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: reverse_keys(value[key]) for key in reversed(value)}
    return [reverse_keys(item) for item in value] if isinstance(value, list) else value


def equal_json(a: Any, b: Any) -> bool:
    """Compare JSON values. Unlike ==, it tells 1, 1.0 and True apart, and 0.0 and -0.0."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal_json(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal_json, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


# --- keys


@given(Settings)
def test_canonical_is_independent_of_order_and_reversible(
    settings: dict[str, Any],
) -> None:
    assert canonical(settings) == canonical(reverse_keys(settings))
    assert equal_json(json.loads(canonical(settings)), settings)


@given(Settings, Settings)
def test_canonical_differs_for_different_settings(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert (canonical(a) == canonical(b)) == equal_json(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("x"), b"x"])
def test_key_refuses_settings_that_json_cannot_hold(store: Store, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        store.get(Stage("stage", 1, {"value": value}, {}, never))


def test_key_depends_only_on_stage_version_settings_and_inputs(store: Store, tmp_path: Path) -> None:
    a, b = store.get(Stage("input", 1, {"n": 1}, {}, write())), store.get(Stage("input", 1, {"n": 2}, {}, write()))
    base = store.get(Stage("stage", 1, {"x": 1, "y": 2}, {"role": a}, write()))
    others = [
        store.get(Stage("other", 1, {"x": 1, "y": 2}, {"role": a}, write())),
        store.get(Stage("stage", 2, {"x": 1, "y": 2}, {"role": a}, write())),
        store.get(Stage("stage", 1, {"x": 1, "y": 3}, {"role": a}, write())),
        store.get(Stage("stage", 1, {"x": 1, "y": 2}, {"role": b}, write())),
        store.get(Stage("stage", 1, {"x": 1, "y": 2}, {"another": a}, write())),
        store.get(Stage("stage", 1, {"x": 1, "y": 2}, {}, write())),
    ]
    assert len({artifact.key for artifact in [a, b, base, *others]}) == 9
    assert store.get(Stage("stage", 1, {"y": 2, "x": 1}, {"role": a}, never)).key == base.key
    elsewhere = Store(tmp_path / "elsewhere")
    moved = elsewhere.get(Stage("input", 1, {"n": 1}, {}, write("other content")))
    assert elsewhere.get(Stage("stage", 1, {"x": 1, "y": 2}, {"role": moved}, write())).key == base.key


@dataclass(frozen=True)
class Part:
    fraction: float
    workers: int = field(metadata=NOT_IN_KEY)


@dataclass(frozen=True)
class SamePart:
    fraction: float
    workers: int = field(metadata=NOT_IN_KEY)


def test_settings_of_component_holds_class_and_fields_in_key() -> None:
    assert settings_of(Part(0.5, workers=1)) == {"class": f"{__name__}.Part", "fraction": 0.5}
    assert settings_of(Part(0.5, workers=1)) == settings_of(Part(0.5, workers=8))
    assert settings_of(Part(0.5, workers=1)) != settings_of(Part(0.6, workers=1))
    assert settings_of(Part(0.5, workers=1)) != settings_of(SamePart(0.5, workers=1))


@pytest.mark.parametrize(("part", "fields_in_key"), [(HF, {"dtype"}), (Hardware, {"precision"})])
def test_settings_of_omits_fields_that_only_change_speed(part: Any, fields_in_key: set[str]) -> None:
    assert {f.name for f in fields(part) if f.metadata.get("in_key", True)} == fields_in_key


# --- computing and reading from the cache


def test_get_computes_once_and_then_returns_cached_artifact(store: Store) -> None:
    first = store.get(Stage("stage", 1, {"x": 1}, {}, write("four")))
    second = store.get(Stage("stage", 1, {"x": 1}, {}, never))
    assert (first.cached, second.cached) == (False, True)
    assert first == second
    assert second.path == store.root / "stage" / second.key
    assert (second.path / "sub" / "file.txt").read_text() == "four"
    assert second.summary == {"length": 4}
    assert second.seconds >= 0
    assert not second.manifest["resumed"]


def test_manifest_records_settings_and_inputs(store: Store) -> None:
    a = store.get(Stage("input", 1, {}, {}, write()))
    manifest = json.loads(
        (store.get(Stage("stage", 3, {"b": [1, 2], "a": None}, {"role": a}, write())).path / MANIFEST).read_text()
    )
    assert manifest["stage"] == "stage"
    assert manifest["version"] == 3
    assert manifest["settings"] == {"a": None, "b": [1, 2]}
    assert manifest["inputs"] == {"role": a.key}
    assert list(manifest["files"]) == ["sub/file.txt"]
    assert {"python", "packages", "commit", "platform", "processor"} <= manifest["provenance"].keys()


def test_manifest_has_no_secret_of_environment_or_command_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "planted-secret")
    monkeypatch.setattr("sys.argv", ["train.py", "token=planted-secret"])
    artifact = store.get(Stage("stage", 1, {}, {}, write()))
    assert "planted-secret" not in (artifact.path / MANIFEST).read_text()


# --- an attempt that fails


def test_get_exception_publishes_nothing_and_keeps_resume_state(store: Store) -> None:
    def fails(folder: Path) -> None:
        (folder / RESUME).mkdir()
        (folder / RESUME / "shard").write_text("done")
        (folder / "leftover.txt").write_text("half")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.get(Stage("stage", 1, {}, {}, fails))
    (partial,) = (store.root / "stage").iterdir()
    assert partial.suffix == ".partial"

    def resume(folder: Path) -> Mapping[str, Any]:
        assert (folder / RESUME / "shard").read_text() == "done"
        return write()(folder)

    artifact = store.get(Stage("stage", 1, {}, {}, resume))
    assert artifact.manifest["resumed"]
    assert [f.name for f in sorted(artifact.path.rglob("*")) if f.is_file()] == [MANIFEST, "file.txt"]
    assert list((store.root / "stage").iterdir()) == [artifact.path]


def test_get_without_resume_state_is_not_marked_resumed(store: Store) -> None:
    with pytest.raises(AssertionError):
        store.get(Stage("stage", 1, {}, {}, never))
    assert not store.get(Stage("stage", 1, {}, {}, write())).manifest["resumed"]


def _hang(root: Path) -> None:
    def compute(folder: Path) -> None:
        (folder / RESUME).mkdir()
        (folder / RESUME / "shard").write_text("done")
        time.sleep(600)

    Store(root).get(Stage("stage", 1, {}, {}, compute))


@pytest.fixture
def hanging(store: Store) -> Iterator[Any]:
    """Start a process that is in the middle of computing the artifact and holds its lock."""
    process = fork.Process(target=_hang, args=(store.root,))
    process.start()
    while not list(store.root.glob("stage/*.partial/resume/shard")):
        assert process.is_alive()
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_get_killed_publishes_nothing_and_frees_lock(store: Store, hanging: Any) -> None:
    os.kill(hanging.pid, signal.SIGKILL)
    hanging.join()
    assert not list(store.root.glob(f"stage/*/{MANIFEST}"))
    artifact = store.get(Stage("stage", 1, {}, {}, write()))
    assert artifact.manifest["resumed"]
    assert not artifact.cached


def test_get_waiting_names_owner_and_takes_over_when_killed(
    store: Store, hanging: Any, caplog: pytest.LogCaptureFixture
) -> None:
    expected_owner = f"{socket.gethostname()}:{hanging.pid} since {datetime.now():%H:}"

    def kill_when_it_waits(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("waiting for stage"):
            os.kill(hanging.pid, signal.SIGKILL)
        return True

    caplog.handler.addFilter(kill_when_it_waits)
    with caplog.at_level(logging.INFO):
        artifact = store.get(Stage("stage", 1, {}, {}, write()))
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith(f"waiting for stage, being computed by {expected_owner}")
    assert messages[1].startswith(f"stage: taking over from {expected_owner}")
    assert artifact.manifest["resumed"]
    assert store.get(Stage("stage", 1, {}, {}, never)).cached


def test_get_different_artifacts_do_not_wait(store: Store, hanging: Any) -> None:
    assert not store.get(Stage("stage", 2, {}, {}, write())).cached
    assert hanging.is_alive()


def _compute_until_killed(root: Path, function: str, call: int) -> None:
    """Compute the artifact, but kill this process at the `call`-th call of `function` in `os`."""
    original, calls = getattr(os, function), iter(range(call))

    def kill_or_call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, function, kill_or_call)
    Store(root).get(Stage("stage", 1, {}, {}, _with_shard))


def _with_shard(folder: Path) -> Mapping[str, Any]:
    (folder / RESUME).mkdir(exist_ok=True)
    (folder / RESUME / "shard").write_text("done")
    return write()(folder)


# os.replace writes the owner's record, then the attempt's inputs and code, then the manifest.
# os.rename first moves the resume state away, then gives the folder its final name.
@pytest.mark.parametrize(
    ("function", "call", "done"), [("replace", 3, False), ("rename", 1, True), ("rename", 2, True)]
)
def test_get_killed_while_publishing_recomputes_nothing_finished(
    store: Store, function: str, call: int, done: bool
) -> None:
    process = fork.Process(target=_compute_until_killed, args=(store.root, function, call))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not list(store.root.glob(f"stage/{20 * '?'}"))
    if done:
        artifact = store.get(Stage("stage", 1, {}, {}, never))
        assert artifact.cached
    else:
        artifact = store.get(Stage("stage", 1, {}, {}, _with_shard))
        assert artifact.manifest["resumed"]
    assert verify(artifact.path) is None
    assert [f.name for f in sorted(artifact.path.rglob("*")) if f.is_file()] == [MANIFEST, "file.txt"]
    assert not list(store.root.rglob("*.partial"))


# --- damage


def edit(manifest: Path, **values: Any) -> None:
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **values}))


DAMAGES: dict[str, tuple[Callable[[Artifact], object], str]] = {
    "changed": (lambda a: (a.path / "sub/file.txt").write_text("Content"), "sub/file.txt has changed"),
    "truncated": (lambda a: os.truncate(a.path / "sub/file.txt", 3), "sub/file.txt has changed"),
    "missing": (lambda a: (a.path / "sub/file.txt").unlink(), "sub/file.txt is missing"),
    "foreign": (lambda a: (a.path / "extra").write_text(""), "extra does not belong there"),
    "no manifest": (lambda a: (a.path / MANIFEST).unlink(), "unreadable manifest"),
    "cut manifest": (lambda a: os.truncate(a.path / MANIFEST, 40), "unreadable manifest"),
    "empty manifest": (lambda a: (a.path / MANIFEST).write_text("{}"), "unreadable manifest"),
    "odd manifest": (lambda a: (a.path / MANIFEST).write_text("[]"), "unreadable manifest"),
    "odd files": (lambda a: edit(a.path / MANIFEST, files=["sub/file.txt"]), "unreadable manifest"),
    "other settings": (
        lambda a: edit(a.path / MANIFEST, settings={"x": 2}),
        "its manifest is another artifact's",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_get_damaged_artifact_is_recomputed(store: Store, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    damage, message = DAMAGES[kind]
    artifact = store.get(Stage("stage", 1, {"x": 1}, {}, write()))
    assert verify(artifact.path) is None
    damage(artifact)
    assert message in str(verify(artifact.path))
    with caplog.at_level(logging.WARNING):
        recomputed = store.get(Stage("stage", 1, {"x": 1}, {}, write()))
    assert message in caplog.text
    assert not recomputed.cached
    assert verify(recomputed.path) is None
    assert store.get(Stage("stage", 1, {"x": 1}, {}, never)).cached


def test_get_damaged_artifact_keeps_files_until_replaced(store: Store) -> None:
    artifact = store.get(Stage("stage", 1, {}, {}, write()))
    (artifact.path / "foreign").touch()
    reader = open(artifact.path / "sub/file.txt")  # noqa: SIM115

    def compute(folder: Path) -> Mapping[str, Any]:
        assert (artifact.path / "sub/file.txt").read_text() == "content"
        return write()(folder)

    assert not store.get(Stage("stage", 1, {}, {}, compute)).cached
    with reader:
        assert reader.read() == "content"
    assert not list((store.root / "trash").iterdir())


def test_verify_accepts_checksums_of_earlier_versions(store: Store) -> None:
    artifact = store.get(Stage("stage", 1, {}, {}, write()))
    manifest = {**artifact.manifest, "files": {"sub/file.txt": hashlib.sha256(b"content").hexdigest()}}
    del manifest["checksum"]
    (artifact.path / MANIFEST).write_text(json.dumps(manifest))
    assert store.get(Stage("stage", 1, {}, {}, never)).cached
    (artifact.path / "sub/file.txt").write_text("Content")
    assert "has changed" in str(verify(artifact.path))
    edit(artifact.path / MANIFEST, checksum="crc7")
    assert "unreadable manifest" in str(verify(artifact.path))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """List the files whose checksums are computed from now on."""
    read: list[Path] = []
    original = contents._checksum

    def counting(path: Path, algorithm: str) -> str:
        read.append(path)
        return original(path, algorithm)

    monkeypatch.setattr(contents, "_checksum", counting)
    return read


def test_verify_once_reads_unchanged_artifact_once(
    store: Store, readings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_SETTLED", -3600.0)  # as if the artifact had been written long ago
    file = store.get(Stage("stage", 1, {}, {}, write())).path / "sub/file.txt"
    readings.clear()
    for _ in range(3):
        store.get(Stage("stage", 1, {}, {}, never))
    assert readings == [file]
    before = file.stat()
    file.write_text("Content")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size and time stamp as before
    assert not store.get(Stage("stage", 1, {}, {}, write())).cached


def test_verify_once_rereads_artifact_written_just_now(store: Store, readings: list[Path]) -> None:
    file = store.get(Stage("stage", 1, {}, {}, write())).path / "sub/file.txt"
    readings.clear()
    for _ in range(3):
        store.get(Stage("stage", 1, {}, {}, never))
    assert readings == [file] * 3


def test_get_artifact_deleted_while_reading_is_recomputed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = store.get(Stage("stage", 1, {}, {}, write()))

    def pruned_now(folder: Path, cached: bool) -> Artifact:
        monkeypatch.undo()
        folder.rename(store.root / "elsewhere")
        return Artifact.read(folder, cached)

    monkeypatch.setattr(Artifact, "read", pruned_now)
    recomputed = store.get(Stage("stage", 1, {}, {}, write()))
    assert not recomputed.cached
    assert (recomputed.key, recomputed.summary) == (artifact.key, artifact.summary)
