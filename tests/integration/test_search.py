"""Optuna's sweeper chooses by what train.py returns; a trial that fails stops no other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import TINY, read_result, run_train
from selfcontrast.report.sweep import read_sweep

pytestmark = pytest.mark.slow

SMALL = [o for o in TINY if not o.startswith(("negatives=", "trainer.epochs="))]


@pytest.mark.parametrize(("direction", "best"), [("maximize", max), ("minimize", min)])
def test_the_best_trial_is_the_one_whose_job_returned_the_best_objective(
    direction: str, best: Callable[..., Any], tmp_path: Path
) -> None:
    """Learning rates between none and ruinous, and a K that is too large for the pool."""
    sweep = tmp_path / "sweep"
    ended = run_train(
        "-m",
        "hydra/sweeper=search",
        "hydra.sweeper.n_trials=4",
        f"hydra.sweeper.direction={direction}",
        "hydra.sweeper.sampler.seed=3",
        "trainer.lr=tag(log,interval(1.0e-6,1.0))",
        "objective.beta=0.1",
        "negatives=choice(2,99)",
        "trainer.epochs=1",
        *SMALL,
        "tracking=none",
        f"hydra.sweep.dir={sweep}",
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    found = read_sweep([sweep])
    assert len(found.jobs) >= 2
    assert len(found.jobs) + len(found.missing) == 4
    assert {job.why for job in found.missing} == {"negatives=99 exceeds filter.max_negatives=4. Raise it or lower K."}
    results = [read_result(sweep / job.folder) for job in found.jobs]
    chosen = best(results, key=lambda result: result["value"])
    told = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert told["best_value"] == chosen["value"]
    assert {result["config"]["trainer"]["lr"] for result in results if result["value"] == chosen["value"]} >= {
        told["best_params"]["trainer.lr"]
    }
    assert len({result["value"] for result in results}) > 1  # else any of them would be the best
    assert f"{len(found.jobs)} jobs" in ended.stdout
