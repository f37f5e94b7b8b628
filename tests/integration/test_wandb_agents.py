"""Run W&B agents in parallel, kill one, stop a run early, and let the server fail for a while."""

from pathlib import Path

import psutil
import pytest
from test_wandb_sweep import SHARED

from agents import environment, files_with_secret, output_of, stage_of, start_wandb, sweep_file, wandb
from jobs import read_result, stages, wait_for
from selfcontrast.store import MANIFEST
from wandb_server import Run, WandbServer, serving

pytestmark = pytest.mark.slow

TWO = {"negatives": {"values": [1, 2]}, "seed": {"value": 1}}


def published(folder: Path) -> dict[Path, int]:
    """Return the manifests in the store, with their times of writing."""
    return {file: file.stat().st_mtime_ns for file in (folder / "store").glob(f"*/*/{MANIFEST}")}


def test_two_agents_compute_shared_stages_once(tmp_path: Path) -> None:
    sweep_file(tmp_path, "negatives.yaml", TWO)
    with serving() as server:
        env = environment(tmp_path, server)
        wandb("sweep", "sweep.yaml", cwd=tmp_path, env=env)
        command = ("agent", "--count", "1", server.sweep["name"])
        for agent in [start_wandb(*command, cwd=tmp_path, env=env) for _ in range(2)]:
            output_of(agent)
        first, second = server.runs.values()
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert (first.config["negatives"], second.config["negatives"]) == (1, 2)
    assert first.summary["value"] == read_result(tmp_path / "outputs" / "run0")["value"]
    computed = [stage_of(name) for run in (first, second) for name in run.logged]
    for stage in SHARED - {"data"}:  # both runs use the data
        assert computed.count(stage) == 1, stage
        assert len(list((tmp_path / "store" / stage).glob(f"*/{MANIFEST}"))) == 1
    assert files_with_secret(tmp_path) == []


def test_agent_after_a_killed_agent_reuses_its_stages(tmp_path: Path) -> None:
    """The server hands out the crashed run's point again, as W&B does for a preempted run."""
    sweep_file(tmp_path, "negatives.yaml", TWO, "trainer.epochs=80")
    with serving() as server:
        env = environment(tmp_path, server)
        wandb("sweep", "sweep.yaml", cwd=tmp_path, env=env)
        with start_wandb("agent", server.sweep["name"], cwd=tmp_path, env=env) as agent:
            wait_for(agent, tmp_path, "align/*.partial/resume/last.ckpt")
            for process in [*psutil.Process(agent.pid).children(recursive=True), psutil.Process(agent.pid)]:
                process.kill()
        before = published(tmp_path)
        assert {file.parts[-3] for file in before} >= SHARED
        crashed = server.runs["run0"]
        assert crashed.exit_code is None
        server.waiting.insert(0, crashed)
        wandb("agent", "--count", "2", server.sweep["name"], cwd=tmp_path, env=env)
        assert [run.exit_code for run in server.runs.values()] == [0, 0]
    assert published(tmp_path).items() >= before.items()
    result = read_result(tmp_path / "outputs" / "run0")
    assert stages(result)["align"]["resumed"]
    assert crashed.series("align/step") == [record["step"] for record in result["histories"]["align"]]
    assert crashed.series("align/loss") == [record["loss"] for record in result["histories"]["align"]]
    again = read_result(tmp_path / "outputs" / "run1")
    assert all(stages(again)[stage]["cached"] for stage in SHARED)


def hyperband(server: WandbServer, metric: str, first: int, eta: int, run: Run) -> bool:
    """Return whether a run is outside the best 1/eta of the runs that reached a rung first·eta^i, at any rung."""
    rung, series = first, run.series(metric)
    while len(series) >= rung:
        values = sorted(r.series(metric)[rung - 1] for r in server.runs.values() if len(r.series(metric)) >= rung)
        if series[rung - 1] < values[-max(1, len(values) // eta)]:
            return True
        rung *= eta
    return False


def test_run_stopped_by_hyperband_exits_0_and_the_agent_continues(tmp_path: Path) -> None:
    """The second learning rate is too low to learn, and its job is too long to end before it is stopped."""
    points = {"trainer.lr": {"values": [2.0e-3, 1.0e-9, 2.0e-3]}, "trainer.epochs": {"values": [120]}}
    sweep = sweep_file(tmp_path, "beta_lr.yaml", points)
    early = sweep["early_terminate"]
    with serving() as server:
        env = environment(tmp_path, server)
        server.stop_when = lambda run: hyperband(server, sweep["metric"]["name"], early["min_iter"], early["eta"], run)
        wandb("sweep", "sweep.yaml", cwd=tmp_path, env=env)
        server.waiting[1].point["trainer.epochs"] = 10_000
        wandb("agent", server.sweep["name"], cwd=tmp_path, env=env)
        first, second, third = server.runs.values()
    assert [run.exit_code for run in (first, second, third)] == [0, 0, 0]
    assert [run.summary.get("stopped") for run in (first, second, third)] == [None, "early", None]
    assert [run.fields.get("tags", []) for run in (first, second)] == [[], ["stopped early"]]
    assert "value" not in second.summary
    assert len(first.series("align/accuracy")) == 8 * 120
    assert early["min_iter"] <= len(second.series("align/accuracy")) < 8 * 10_000
    assert third.summary["value"] == pytest.approx(first.summary["value"])  # the same point again


def test_job_with_a_failing_server_loses_no_metrics(tmp_path: Path) -> None:
    """Twenty requests fail, beginning with the first metrics."""
    sweep_file(tmp_path, "negatives.yaml", {"negatives": {"value": 2}, "seed": {"value": 1}})
    with serving() as server:
        env = environment(tmp_path, server)
        wandb("sweep", "sweep.yaml", cwd=tmp_path, env=env)
        server.breaks_for = 20
        wandb("agent", "--count", "1", server.sweep["name"], cwd=tmp_path, env=env)
        (run,) = server.runs.values()
        assert len(server.broken) == 20
        assert server.request_count > server.broken.stop
    result = read_result(tmp_path / "outputs" / "run0")
    assert run.exit_code == 0
    for stage in ("sft", "align"):
        assert run.series(f"{stage}/step") == [record["step"] for record in result["histories"][stage]]
    assert run.summary["value"] == result["value"]
    assert {stage_of(name) for name in (*run.logged, *run.used)} >= {
        Path(s["path"]).parent.name for s in result["stages"]
    }
    assert all(artifact.committed for artifact in server.artifacts.values())
    assert all(run.series(f"tables/{table}") for table in ("candidates", "negatives", "samples"))
