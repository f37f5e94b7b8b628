"""The same points through every launcher: the same scores, bit for bit; and one that fails sinks no other."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs import TINY, came_to, read_result, run_train

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
    assert "negatives=99 exceeds filter.max_negatives=4" in said
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
    ],
    ids=["joblib", "submitit_local"],
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
