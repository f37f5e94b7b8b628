"""Agents that work at once, are killed, or are told to give a run up; and a server that is out of order."""

from pathlib import Path

import psutil
import pytest
from test_wandb_sweep import SHARED

from agents import ended, environment, holds_secret, stage_of, start_wandb, sweep_file, wandb
from jobs import read_result, stages, wait_for
from selfcontrast.store import MANIFEST
from wandb_server import Run, WandbServer, serving

pytestmark = pytest.mark.slow

TWO = {"negatives": {"values": [1, 2]}, "seed": {"value": 1}}


def published(folder: Path) -> dict[Path, int]:
    """The manifests in the store, and when they were written."""
    return {file: file.stat().st_mtime_ns for file in (folder / "store").glob(f"*/*/{MANIFEST}")}


def test_two_agents_at_once_compute_what_they_share_once(tmp_path: Path) -> None:
    sweep_file(tmp_path, "negatives.yaml", TWO)
    with serving() as server:
        env = environment(tmp_path, server)
        wandb("sweep", "sweep.yaml", cwd=tmp_path, env=env)
        command = ("agent", "--count", "1", server.sweep["name"])
        for agent in [start_wandb(*command, cwd=tmp_path, env=env) for _ in range(2)]:
            ended(agent)
        one, two = server.runs.values()
    assert (one.exit_code, two.exit_code) == (0, 0)
    assert (one.config["negatives"], two.config["negatives"]) == (1, 2)
    assert one.summary["value"] == read_result(tmp_path / "outputs" / "run0")["value"]
    computed = [stage_of(name) for run in (one, two) for name in run.logged]
    for stage in SHARED - {"data"}:  # which both use
        assert computed.count(stage) == 1, stage
        assert len(list((tmp_path / "store" / stage).glob(f"*/{MANIFEST}"))) == 1
    assert holds_secret(tmp_path) == []


def test_a_killed_agent_loses_no_finished_stage_and_another_goes_on(tmp_path: Path) -> None:
    """The server gives the crashed run's point out again, as it does for one that was preempted."""
    sweep_file(tmp_path, "negatives.yaml", TWO, "trainer.epochs=40")
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
    """Return whether a run is below the best 1/eta of the runs that reached a rung first·eta^i, for any i."""
    rung, own = first, run.series(metric)
    while len(own) >= rung:
        values = sorted(r.series(metric)[rung - 1] for r in server.runs.values() if len(r.series(metric)) >= rung)
        if own[rung - 1] < values[-max(1, len(values) // eta)]:
            return True
        rung *= eta
    return False


def test_a_run_that_hyperband_stops_ends_well_and_the_agent_goes_on(tmp_path: Path) -> None:
    """The second learning rate teaches nothing; 960 steps last longer than W&B waits before it sends metrics."""
    sweep = sweep_file(
        tmp_path, "beta_lr.yaml", {"trainer.lr": {"values": [2.0e-3, 1.0e-9, 2.0e-3]}}, "trainer.epochs=120"
    )
    early = sweep["early_terminate"]
    with serving() as server:
        env = environment(tmp_path, server)
        server.stop_when = lambda run: hyperband(server, sweep["metric"]["name"], early["min_iter"], early["eta"], run)
        wandb("sweep", "sweep.yaml", cwd=tmp_path, env=env)
        wandb("agent", server.sweep["name"], cwd=tmp_path, env=env)
        first, second, third = server.runs.values()
    assert [run.exit_code for run in (first, second, third)] == [0, 0, 0]
    assert [run.summary.get("stopped") for run in (first, second, third)] == [None, "early", None]
    assert [run.fields.get("tags", []) for run in (first, second)] == [[], ["stopped early"]]
    assert "value" not in second.summary
    assert early["min_iter"] <= len(second.series("align/accuracy")) < len(first.series("align/accuracy"))
    assert third.summary["value"] == pytest.approx(first.summary["value"])  # the same point once more


def test_a_job_goes_on_while_the_server_is_out_of_order(tmp_path: Path) -> None:
    """Twenty requests fail, from the first metrics on; in the end nothing is missing."""
    sweep_file(tmp_path, "negatives.yaml", {"negatives": {"value": 2}, "seed": {"value": 1}})
    with serving() as server:
        env = environment(tmp_path, server)
        wandb("sweep", "sweep.yaml", cwd=tmp_path, env=env)
        server.breaks_for = 20
        wandb("agent", "--count", "1", server.sweep["name"], cwd=tmp_path, env=env)
        (run,) = server.runs.values()
        assert len(server.broken) == 20
        assert server.asked > server.broken.stop
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
