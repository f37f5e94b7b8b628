"""Run the same sweep with every launcher. Scores are equal bit for bit, and a failed job stops no other job."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs import TINY, comparable_numbers, read_result, run_train

pytestmark = pytest.mark.slow

POINTS = [o for o in TINY if not o.startswith("negatives=")]


def run_sweep(folder: Path, *launcher: str, env: Mapping[str, str] | None = None) -> dict[int, object]:
    """Run jobs with K = 1, 2, 3, 4 and an impossible K. Return the numbers of the four that finish."""
    ended = run_train(
        "-m",
        "negatives=1,99,2,3,4",
        *launcher,
        *POINTS,
        "tracking=csv",
        f"hydra.sweep.dir={folder / 'sweep'}",
        cwd=folder,
        env=env,
        fresh=True,  # a launcher starts processes with the main module of its own process
    )
    assert ended.returncode == 1, ended.stderr
    assert "no result: job 1 (negatives=99)" in ended.stdout
    printed = " ".join(ended.stdout.split())
    assert "filter.max_negatives=4" in printed
    results = [read_result(folder / "sweep" / job) for job in ("0", "2", "3", "4")]
    assert (folder / "sweep/0/metrics/align.csv").exists()
    return {r["negatives"]: comparable_numbers(r) for r in results}


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> dict[int, object]:
    return run_sweep(tmp_path_factory.mktemp("basic"))


@pytest.mark.parametrize(
    "launcher",
    [
        ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        ("hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"),
    ],
    ids=["joblib", "submitit_local"],
)
def test_launcher_gives_the_results_of_sequential_jobs(
    launcher: tuple[str, ...], sequential: dict[int, object], tmp_path: Path
) -> None:
    assert run_sweep(tmp_path, *launcher) == sequential


def test_parallel_jobs_see_one_gpu_each(sequential: dict[int, object], tmp_path: Path) -> None:
    """GPUs 98 and 99 do not exist, so the jobs run on the CPU."""
    settings = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hardware.accelerator=auto")
    assert run_sweep(tmp_path, *settings, env={"CUDA_VISIBLE_DEVICES": "98,99"}) == sequential
    results = [read_result(tmp_path / "sweep" / job) for job in ("0", "2", "3", "4")]
    assert {result["provenance"]["visible_gpus"] for result in results} == {"98", "99"}
