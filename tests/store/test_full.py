"""Test full disks on small but real file systems."""

import multiprocessing
import os
import resource
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from computing import write
from safetensors.numpy import save_file

from selfcontrast.errors import UserError
from selfcontrast.store import RESUME, Stage, Store, verify

fork = multiprocessing.get_context("fork")

SHARD = 600_000  # bytes
LIMIT = 1_000_000  # bytes, the largest size that a file may have


def _save_model(folder: Path) -> None:
    """Save a model file. On a full disk safetensors raises an error from Rust, not Python's OSError."""
    save_file({"x": np.zeros(LIMIT, dtype=np.uint8)}, folder / "model.safetensors")


def compute_model(folder: Path) -> Mapping[str, Any]:
    (folder / RESUME).mkdir(exist_ok=True)
    if not (folder / RESUME / "shard").exists():
        (folder / RESUME / "shard").write_bytes(b"x" * SHARD)
    (folder / "small").write_text("x")
    _save_model(folder)
    return {}


def assert_nothing_half_written(root: Path) -> None:
    (partial,) = (root / "stage").iterdir()
    assert sorted(f.name for f in partial.rglob("*") if f.is_file()) == ["begun_with.json", "shard"]


def assert_one_line(error: BaseException, root: Path, reason: str) -> None:
    assert f"store={root}: {reason} (" in str(error)
    assert "MiB free" in str(error)
    assert "\n" not in str(error)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_raises_one_line_and_same_call_resumes(small_disk: Path) -> None:
    root = small_disk / "store"
    with pytest.raises(UserError) as raised:
        Store(root).get(Stage("stage", 1, {}, {}, compute_model))
    assert_one_line(raised.value, root, "No space left on device")
    assert_nothing_half_written(root)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    artifact = Store(root).get(Stage("stage", 1, {}, {}, compute_model))
    assert artifact.manifest["resumed"]
    assert verify(artifact.path) is None


def test_disk_without_free_bytes_fails_before_computing(small_disk: Path) -> None:
    root = small_disk / "store"
    with open(small_disk / "filling", "wb", buffering=0) as filling:
        assert filling.write(b"x" * 2**21) < 2**21
    with pytest.raises(UserError) as raised:
        Store(root).get(Stage("stage", 1, {}, {}, write()))
    assert_one_line(raised.value, root, "No space left on device")
    (small_disk / "filling").unlink()
    assert not Store(root).get(Stage("stage", 1, {}, {}, write())).cached


def _compute_with_limit(root: Path, messages: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    try:
        Store(root).get(Stage("stage", 1, {}, {}, compute_model))
    except UserError as error:
        messages.put(str(error))


def test_file_size_limit_is_reported_as_full_disk(tmp_path: Path) -> None:
    root, messages = tmp_path / "store", fork.SimpleQueue()
    process = fork.Process(target=_compute_with_limit, args=(root, messages))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert_one_line(UserError(messages.get()), root, os.strerror(27))
    assert_nothing_half_written(root)
    assert Store(root).get(Stage("stage", 1, {}, {}, compute_model)).manifest["resumed"]


def test_error_caused_by_full_disk_is_reported_as_such(tmp_path: Path) -> None:
    def compute(folder: Path) -> None:
        try:
            with open("/dev/full", "w") as full:
                full.write("x")
        except OSError as error:
            raise RuntimeError("could not save") from error

    with pytest.raises(UserError) as raised:
        Store(tmp_path).get(Stage("stage", 1, {}, {}, compute))
    assert_one_line(raised.value, tmp_path, "No space left on device")


def test_get_error_other_than_full_disk_passes_unchanged(tmp_path: Path) -> None:
    def compute(folder: Path) -> None:
        raise ValueError("File too large for this test")

    with pytest.raises(ValueError, match="for this test"):
        Store(tmp_path).get(Stage("stage", 1, {}, {}, compute))


def test_permission_error_inside_store_raises_user_error(tmp_path: Path) -> None:
    def compute(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "file"))

    with pytest.raises(UserError, match=r"store=.*Permission denied"):
        Store(tmp_path).get(Stage("stage", 1, {}, {}, compute))


def test_permission_error_outside_store_passes_unchanged(tmp_path: Path) -> None:
    def compute(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", "/elsewhere")

    with pytest.raises(PermissionError):
        Store(tmp_path).get(Stage("stage", 1, {}, {}, compute))
