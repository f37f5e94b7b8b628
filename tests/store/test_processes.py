"""Test the store with many processes and with killed processes."""

import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from shard_worker import SECONDS, SHARDS, get_artifact, shard

from selfcontrast.store import RESUME, Stage, Store, verify

HERE = Path(__file__).parent
TIMEOUT = 120

fork = multiprocessing.get_context("fork")


def wait_for_file(folder: Path, pattern: str) -> None:
    """Wait until a file in the folder matches the pattern."""
    end = time.monotonic() + TIMEOUT
    while not list(folder.glob(pattern)):
        assert time.monotonic() < end, f"no {pattern}"
        time.sleep(0.005)


def artifact_content(root: Path) -> bytes:
    (artifact,) = root.glob(f"stage/{20 * '?'}")
    assert verify(artifact) is None
    return (artifact / "whole").read_bytes()


def test_ten_processes_compute_once_and_resume_after_kill(tmp_path: Path) -> None:
    root, log_file = tmp_path / "store", tmp_path / "log"
    command = [sys.executable, str(HERE / "shard_worker.py"), str(root), str(log_file)]
    first = subprocess.Popen(command)
    wait_for_file(root, f"stage/*.partial/{RESUME}/03")
    others = [subprocess.Popen(command) for _ in range(9)]
    try:
        first.send_signal(signal.SIGKILL)
        assert first.wait(TIMEOUT) == -signal.SIGKILL
        assert [other.wait(TIMEOUT) for other in others] == [0] * 9
    finally:
        for process in (first, *others):
            process.kill()
    computed = [int(line) for line in log_file.read_text().split()]
    assert sorted(set(computed)) == list(range(SHARDS))
    assert len(computed) <= SHARDS + 1  # one more, because the killed process may have been computing a shard
    assert artifact_content(root) == b"".join(map(shard, range(SHARDS)))


def test_twenty_random_kills_lose_no_shard_and_end_byte_equal(tmp_path: Path) -> None:
    draw, kills, log_file, attempt = random.Random(4), 0, tmp_path / "log", 0
    while kills < 20:
        root = tmp_path / f"store-{attempt}"
        killed = 0
        log_file.unlink(missing_ok=True)
        while not list(root.glob(f"stage/{20 * '?'}")):
            before = {f.name for f in root.glob(f"stage/*.partial/{RESUME}/??")}
            process = fork.Process(target=get_artifact, args=(root, log_file))
            process.start()
            process.join(draw.uniform(0, SHARDS * SECONDS / 3) if kills + killed < 20 else TIMEOUT)
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            after = {f.name for f in root.glob(f"stage/*.partial/{RESUME}/??")}
            assert before <= after or list(root.glob("stage/*/manifest.json"))
        computed = log_file.read_text().split()
        assert set(map(int, computed)) == set(range(SHARDS))
        assert len(computed) <= SHARDS + killed
        assert artifact_content(root) == b"".join(map(shard, range(SHARDS)))
        kills, attempt = kills + killed, attempt + 1


def test_uninterrupted_artifact_has_the_expected_bytes_and_is_cached(tmp_path: Path) -> None:
    get_artifact(tmp_path / "store", tmp_path / "log")
    assert artifact_content(tmp_path / "store") == b"".join(map(shard, range(SHARDS)))
    assert Store(tmp_path / "store").get(Stage("stage", 1, {}, {}, lambda folder: None)).cached
