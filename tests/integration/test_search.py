"""Run Optuna's sweeper: it optimises the value that train.py returns, and a failed trial stops no other trial."""

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
def test_search_best_trial_has_the_best_value(direction: str, best: Callable[..., Any], tmp_path: Path) -> None:
    """Learning rates go from tiny to ruinous, and one K is too large for the pool."""
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
    trials = read_sweep([sweep])
    assert len(trials.jobs) >= 2
    assert len(trials.jobs) + len(trials.missing) == 4
    assert all("negatives=99" in job.why and "filter.max_negatives=4" in job.why for job in trials.missing)
    assert trials.missing
    results = [read_result(sweep / job.folder) for job in trials.jobs]
    chosen = best(results, key=lambda result: result["value"])
    optimum = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert optimum["best_value"] == chosen["value"]
    assert {result["config"]["trainer"]["lr"] for result in results if result["value"] == chosen["value"]} >= {
        optimum["best_params"]["trainer.lr"]
    }
    assert len({result["value"] for result in results}) > 1  # else every trial would be the best
    assert f"{len(trials.jobs)} jobs" in ended.stdout
