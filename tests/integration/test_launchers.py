"""The same points through every launcher: the same scores, bit for bit; and one that fails sinks no other."""

from pathlib import Path
from typing import Any

import pytest

from jobs import TINY, read_result, run_train

POINTS = [o for o in TINY if not o.startswith("negatives=")]


def swept(folder: Path, *launcher: str) -> dict[int, object]:
    """K of 1 and 2, and one that cannot be: what the two came to."""
    ended = run_train(
        "-m",
        "negatives=1,99,2",
        *launcher,
        *POINTS,
        "tracking=csv",
        f"hydra.sweep.dir={folder / 'sweep'}",
        cwd=folder,
    )
    assert ended.returncode == 1, ended.stderr
    assert "no result: job 1 (negatives=99)" in ended.stdout
    said = " ".join(ended.stdout.split())
    assert "negatives=99 is more than filter.max_negatives=4: raise that, or lower K" in said
    results = [read_result(folder / "sweep" / job) for job in ("0", "2")]
    assert (folder / "sweep/0/metrics/align.csv").exists()
    return {r["negatives"]: [r["value"], r["comparison"], losses(r), r["samples"]] for r in results}


def losses(result: dict[str, Any]) -> list[float]:
    return [record["loss"] for stage in ("sft", "align") for record in result["histories"][stage] if "loss" in record]


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
