"""The same points through every launcher: the same scores, bit for bit; and one that fails sinks no other."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs import ROOT, TIMEOUT, TINY, came_to, read_result, run_train
from selfcontrast.errors import FAILED

pytestmark = pytest.mark.slow

POINTS = [o for o in TINY if not o.startswith("negatives=")]


def swept(folder: Path, *launcher: str, env: Mapping[str, str] | None = None) -> dict[int, object]:
    """K of 1, 2, 3 and 4, and one that cannot be: what the four came to."""
    ended = run_train(
        "-m",
        "negatives=1,99,2,3,4",
        *launcher,
        *POINTS,
        "tracking=csv",
        f"hydra.sweep.dir={folder / 'sweep'}",
        cwd=folder,
        env=env,
        fresh=True,  # a launcher starts processes by its own process' main module
    )
    assert ended.returncode == 1, ended.stderr
    assert "no result: job 1 (negatives=99)" in ended.stdout
    said = " ".join(ended.stdout.split())
    assert "negatives=99 is more than filter.max_negatives=4: raise that, or lower K" in said
    results = [read_result(folder / "sweep" / job) for job in ("0", "2", "3", "4")]
    assert (folder / "sweep/0/metrics/align.csv").exists()
    return {r["negatives"]: came_to(r) for r in results}


@pytest.fixture(scope="module")
def one_after_another(tmp_path_factory: pytest.TempPathFactory) -> dict[int, object]:
    return swept(tmp_path_factory.mktemp("basic"))


@pytest.mark.parametrize(
    "launcher",
    [
        ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        ("hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"),
        ("hydra/launcher=ray",),
    ],
    ids=["joblib", "submitit_local", "ray"],
)
def test_a_launcher_gives_what_one_job_after_another_gives(
    launcher: tuple[str, ...], one_after_another: dict[int, object], tmp_path: Path
) -> None:
    assert swept(tmp_path, *launcher) == one_after_another


def test_jobs_at_once_see_a_gpu_each(one_after_another: dict[int, object], tmp_path: Path) -> None:
    """Two that no machine has, so that it is the CPU that computes."""
    own = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hardware.accelerator=auto")
    assert swept(tmp_path, *own, env={"CUDA_VISIBLE_DEVICES": "98,99"}) == one_after_another
    results = [read_result(tmp_path / "sweep" / job) for job in ("0", "2", "3", "4")]
    assert {result["provenance"]["visible_gpus"] for result in results} == {"98", "99"}


# A job that is killed, as for want of memory, when K is 2.
KILLED = """
import os, signal, sys
import hydra
from omegaconf import DictConfig

def job(cfg: DictConfig) -> float:
    if cfg.negatives == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(cfg.negatives)

hydra.main(version_base="1.3", config_path=sys.argv.pop(1), config_name="config")(job)()
"""


def test_a_worker_of_rays_that_is_killed_sinks_no_other_job(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    arguments = ["-m", "negatives=1,2,4", "hydra/launcher=ray", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    ended = subprocess.run(
        [sys.executable, "killed.py", str(ROOT / "conf"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 1
    assert "job 1: its worker was lost" in ended.stderr
    said = (ended.stdout + ended.stderr).splitlines()
    for line in ("#0 negatives=1: done", "#1 negatives=2: failed", "#2 negatives=4: done"):
        assert any(found.endswith(line) for found in said), said
    assert [folder.name for folder in (tmp_path / "sweep").iterdir() if (folder / FAILED).exists()] == ["1"]
    assert "its worker was lost" in (tmp_path / "sweep" / "1" / FAILED).read_text()
