"""Test that Ray writes the same files as `Local`, even after a lost actor, and leaves no process or file behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from doubling import Doubling, shards
from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.engines.ray import Actor, Ray
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Responder, Sampler
from selfcontrast.generators.hf import HF
from tiny import policy_folder, tokenizer

pytestmark = pytest.mark.slow

SETTINGS = {
    "prompts_per_shard": 2,
    "texts_per_shard": 1,
    "actors": 2,
    "cpus_per_actor": 0.5,
    "gpus_per_actor": None,
    "restarts": 1,
    "address": None,
}
PATH = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *filter(None, sys.path)])
WAIT = 120  # seconds until the test fails; it usually takes a few


def engine(**changes: Any) -> Ray:
    return Ray(**{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """Return a folder for Ray with a short name, because the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(short_folder: Path) -> Iterator[None]:
    """Start one cluster for many tests; its workers can import this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        patch.setenv("RAY_TMPDIR", str(short_folder))
        with engine().ready():
            yield


def opened_workers(folder: Path) -> list[str]:
    """Return `PROCESS-DEVICE` of each worker."""
    return sorted(file.stem for file in folder.glob("*.opened"))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"prompts_per_shard": 0}, "engine.prompts_per_shard=0"),
        ({"texts_per_shard": 0}, "engine.texts_per_shard=0"),
        ({"actors": 0}, "engine.actors=0"),
        ({"actors": [3, 2]}, r"engine.actors=\[3, 2\]"),
        ({"actors": [1, 2, 3]}, r"engine.actors=\[1, 2, 3\]"),
        ({"cpus_per_actor": -1.0}, "engine.cpus_per_actor=-1"),
        ({"gpus_per_actor": 1.5}, "engine.gpus_per_actor=1.5"),
        ({"restarts": -1}, "engine.restarts=-1"),
        ({"address": "ray://head:10001"}, "RAY_ADDRESS"),
    ],
    ids=str,
)
def test_ray_with_invalid_values_raises(changes: dict[str, Any], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        engine(**changes)


def test_check_with_more_actors_than_cores_raises() -> None:
    engine(actors=[1, 4_000]).check()
    with pytest.raises(UserError, match="2000 cores are needed"):
        engine(actors=4_000).check()


def test_check_without_ray_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcontrast.engines.ray.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ray\[data\]'"):
        engine().check()


def test_actor_without_the_store_raises(tmp_path: Path) -> None:
    actor = Actor(Doubling(tmp_path), "cpu", tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path / 'store'} does not exist on "):
        actor.write(tmp_path / "store" / "a.parquet", b"")


def test_run_writes_every_shard_once_in_other_processes(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = shards(tmp_path, [1, 2], [11], [3], [4])
    engine().run(Doubling(tmp_path), work, "cpu", "double", "number")
    assert [pq.read_table(shard.file)["double"].to_pylist() for shard in work] == [[2, 4], [22], [6], [8]]
    before = opened_workers(tmp_path)
    assert 1 <= len(before) <= 2
    assert all(name.split("-")[1] == "cpu" and name.split("-")[0] != str(os.getpid()) for name in before)
    assert [(r.name, r.getMessage()) for r in caplog.records] == [("selfcontrast.test", "11 is odd")]
    engine().run(Doubling(tmp_path), work, "cpu", "double", "number")
    assert opened_workers(tmp_path) == before


def test_user_error_of_a_worker_is_raised_unchanged(cluster: None, tmp_path: Path) -> None:
    work = shards(tmp_path, [13], [1])
    with pytest.raises(UserError) as error:
        engine(actors=1).run(Doubling(tmp_path), work, "cpu", "double", "number")
    assert str(error.value).startswith("number=13: ")
    assert not work[0].file.exists()


def test_shard_that_kills_every_worker_raises(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine\.restarts=1"):
        engine(actors=1).run(Doubling(tmp_path), shards(tmp_path, [14]), "cpu", "double", "number")
    assert len(opened_workers(tmp_path)) == 2


@dataclass(frozen=True)
class KilledOnce(HF):
    """A backend whose worker is killed once, with `kill -9`, in its second shard."""

    mark: Path

    @contextmanager
    def open(self, model: Path, device: str) -> Iterator[Sampler]:
        shards = iter(range(1))
        with super().open(model, device) as sample:

            def sampler(*args: Any) -> list[Candidate]:
                candidates = sample(*args)
                if next(shards, None) is None and not self.mark.exists():
                    self.mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return candidates

            yield sampler


def test_lost_worker_does_not_change_the_files(cluster: None, tmp_path: Path) -> None:
    renderer, policy = Renderer(tokenizer()), policy_folder(tmp_path / "policy")
    texts = ["the cat " * (1 + i % 4) for i in range(12)]
    requests = [Request(f"r{i}", renderer.prompt([{"role": "user", "content": t}])) for i, t in enumerate(texts)]
    decoding = Decoding(samples=3, temperature=1.0, top_p=1.0, max_new_tokens=8, max_length=64)
    mark = tmp_path / "mark"
    local = Responder(HF("float32", 6), Local(2, 1), "cpu")
    remote = Responder(KilledOnce("float32", 6, mark), engine(restarts=3), "cpu")
    expected = local.sample(policy, requests, decoding, 0, tmp_path / "local", "test")
    files = remote.sample(policy, requests, decoding, 0, tmp_path / "ray", "test")
    assert mark.exists()
    assert len(files) == 6
    assert [file.name for file in files] == [file.name for file in expected]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in expected]


SCRIPT = """
import sys
from pathlib import Path
from doubling import Doubling, shards
from selfcontrast.engines.ray import Ray
folder = Path(sys.argv[1])
try:
    engine = Ray(2, 1, 1, 1, None, 1, None)
    with engine.ready():  # two runs, because Ray processes the shards of a run in any order
        engine.run(Doubling(folder), shards(folder, [1]), "cpu", "double", "number")
        engine.run(Doubling(folder), shards(folder, [1], [15]), "cpu", "double", "number")
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


def test_local_cluster_listens_on_loopback_and_ends_with_its_job(short_folder: Path, tmp_path: Path) -> None:
    folder = short_folder / "job"
    folder.mkdir()
    job = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": PATH, "RAY_TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    processes = [psutil.Process(job.pid)]
    try:
        end = time.monotonic() + WAIT
        while not ((tmp_path / "waiting").exists() and (tmp_path / "0.parquet").exists()):
            assert job.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        processes += processes[0].children(recursive=True)
        connections = [connection for process in processes for connection in process.net_connections()]
        listening = {c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        job.send_signal(signal.SIGINT)
        _, stderr = job.communicate(timeout=WAIT)
    finally:
        job.kill()
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    assert psutil.wait_procs(processes, timeout=WAIT)[1] == []
    assert not list(folder.iterdir())
    assert sorted(file.name for file in tmp_path.glob("*.parquet")) == ["0.parquet"]
