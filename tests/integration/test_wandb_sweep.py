"""Run the default sweep: `wandb sweep` and `wandb agent` start `train.py`, with a stand-in for W&B's server."""

import json
import subprocess
from pathlib import Path

import pytest

from agents import environment, files_with_secret, stage_of, sweep_file, wandb
from jobs import ROOT, SECRET, TINY, comparable_numbers, read_result, run_train
from selfcontrast.store import MANIFEST
from wandb_server import WandbServer, serving

pytestmark = pytest.mark.slow

SHARED = {"data", "contamination", "sft", "generate", "embed", "filter", "reference"}  # stages shared by every K
BASELINES = {"evaluate", "divergence", "answers", "benchmark"}  # stages of the fine-tuned model
KS = (1, 4, 8, 16)
LARGE = ("filter.max_negatives=16", "generator.samples=24")  # needed for K = 16


@pytest.fixture(scope="module")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WandbServer]:
    """Run all points of sweeps/negatives.yaml with one agent. Return the folder of all files, and the server."""
    folder = tmp_path_factory.mktemp("swept")
    sweep_file(folder, "negatives.yaml", None, *LARGE)
    with serving() as server:
        env = environment(folder, server)
        output = wandb("sweep", "sweep.yaml", cwd=folder, env=env)
        output += wandb("agent", "--count", "4", server.sweep["name"], cwd=folder, env=env)
        (folder / "output").write_text(output)
        return folder, server


def test_sweep_runs_finish_with_configs_that_differ_only_in_k(finished_sweep: tuple[Path, WandbServer]) -> None:
    _, server = finished_sweep
    runs = list(server.runs.values())
    assert [run.exit_code for run in runs] == [0, 0, 0, 0]
    assert tuple(run.config["negatives"] for run in runs) == KS
    first, *others = ({k: v for k, v in run.config.items() if k not in ("negatives", "_wandb")} for run in runs)
    assert all(other == first for other in others)
    assert {"sft", "objective", "provenance", "seed", "max_length"} <= first.keys()


def test_sweep_run_has_fields_files_series_and_tables(finished_sweep: tuple[Path, WandbServer]) -> None:
    _, server = finished_sweep
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    for k, run in zip(KS, server.runs.values(), strict=True):
        assert run.fields["sweep"] == server.sweep["name"] == run.fields["groupName"]
        assert (run.fields["jobType"], run.fields["displayName"]) == ("train", f"Self-Contrast K={k} s1")
        assert run.fields["commit"] == head.stdout.strip()
        assert {"python", "cpu", "memory", "git"} <= json.loads(run.files["wandb-metadata.json"]).keys()
        assert b"torch==" in run.files["requirements.txt"]
        assert run.series("align/step") == sorted(run.series("align/step"))
        assert len(run.series("align/accuracy")) == len(run.series("align/loss")) > 10
        assert 0 <= run.summary["value"] <= 1
        for table in ("candidates", "negatives", "samples", "judgments/pairwise"):
            assert run.series(f"tables/{table}"), table


def test_cached_stages_are_used_and_not_logged_by_later_runs(finished_sweep: tuple[Path, WandbServer]) -> None:
    folder, server = finished_sweep
    first, *others = server.runs.values()
    assert [stage_of(name) for name in first.used] == ["data"]  # every run begins with the data
    assert (SHARED - {"data"}) | {"align", "evaluate"} <= {stage_of(name) for name in first.logged}
    for run in others:
        assert {stage_of(name) for name in run.used} == SHARED | BASELINES
        assert not SHARED & {stage_of(name) for name in run.logged}
    for stage in SHARED:
        assert len(list((folder / "store" / stage).glob(f"*/{MANIFEST}"))) == 1
    assert all(artifact.committed for artifact in server.artifacts.values())


def test_lineage_begins_with_the_data(finished_sweep: tuple[Path, WandbServer]) -> None:
    _, server = finished_sweep
    made_from = {
        artifact.fields["name"]: json.loads(artifact.fields["metadata"])["made_from"]
        for artifact in server.artifacts.values()
        if "made_from" in (artifact.fields.get("metadata") or "")
    }
    assert [made_from[name] for name in made_from if stage_of(name) == "data"] == [[]]
    ancestors: set[str] = set()
    todo = {min(name for name in made_from if stage_of(name) == "align")}
    while todo - ancestors:
        ancestors |= todo
        todo = {source for name in todo for source in made_from[name]}
    assert {stage_of(name) for name in ancestors} == {"align", *SHARED} - {"contamination"}


def test_multirun_over_the_same_points_gives_the_same_results(
    finished_sweep: tuple[Path, WandbServer], tmp_path: Path
) -> None:
    folder, _ = finished_sweep
    small = [o for o in TINY if not o.startswith(("negatives=", "filter.max_negatives=", "generator.samples="))]
    points, sweep = "negatives=1,4,8,16", f"hydra.sweep.dir={tmp_path / 'sweep'}"
    ended = run_train("-m", points, *small, *LARGE, "tracking=none", sweep, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for number in range(4):
        by_agent = read_result(folder / "outputs" / f"run{number}")
        assert comparable_numbers(read_result(tmp_path / "sweep" / str(number))) == comparable_numbers(by_agent)


def test_wandb_api_key_is_in_no_file_and_no_request_body(finished_sweep: tuple[Path, WandbServer]) -> None:
    folder, server = finished_sweep
    assert {request.key for request in server.requests if request.path == "/graphql"} == {SECRET}
    assert [r.path for r in server.requests if SECRET in r.path or SECRET.encode() in r.body] == []
    assert files_with_secret(folder) == []
