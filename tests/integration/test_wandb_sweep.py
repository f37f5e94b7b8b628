"""The default sweep: `wandb sweep` and `wandb agent` drive `train.py` against a stand-in of the server."""

import json
import subprocess
from pathlib import Path

import pytest

from agents import environment, holds_secret, stage_of, sweep_file, wandb
from jobs import ROOT, SECRET, TINY, came_to, read_result, run_train
from selfcontrast.store import MANIFEST
from wandb_server import WandbServer, serving

pytestmark = pytest.mark.slow

SHARED = {"data", "contamination", "sft", "generate", "embed", "filter", "reference"}  # by every K
BASELINES = {"evaluate", "divergence", "answers", "benchmark"}  # of the fine-tuned model
KS = (1, 4, 8, 16)
LARGE = ("filter.max_negatives=16", "generator.samples=24")  # for K = 16


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WandbServer]:
    """sweeps/negatives.yaml as it is, by one agent; everything it wrote lies in the folder."""
    folder = tmp_path_factory.mktemp("swept")
    sweep_file(folder, "negatives.yaml", None, *LARGE)
    with serving() as server:
        env = environment(folder, server)
        said = wandb("sweep", "sweep.yaml", cwd=folder, env=env)
        said += wandb("agent", "--count", "4", server.sweep["name"], cwd=folder, env=env)
        (folder / "said").write_text(said)
        return folder, server


def test_four_runs_finish_and_their_config_differs_in_k_alone(swept: tuple[Path, WandbServer]) -> None:
    _, server = swept
    runs = list(server.runs.values())
    assert [run.exit_code for run in runs] == [0, 0, 0, 0]
    assert tuple(run.config["negatives"] for run in runs) == KS
    first, *others = ({k: v for k, v in run.config.items() if k not in ("negatives", "_wandb")} for run in runs)
    assert all(other == first for other in others)
    assert {"sft", "objective", "provenance", "seed", "max_length"} <= first.keys()


def test_a_run_is_whole(swept: tuple[Path, WandbServer]) -> None:
    _, server = swept
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


def test_what_later_runs_recall_they_use_and_do_not_log(swept: tuple[Path, WandbServer]) -> None:
    folder, server = swept
    first, *others = server.runs.values()
    assert [stage_of(name) for name in first.used] == ["data"]  # it begins with them, whoever wrote them first
    assert (SHARED - {"data"}) | {"align", "evaluate"} <= {stage_of(name) for name in first.logged}
    for run in others:
        assert {stage_of(name) for name in run.used} == SHARED | BASELINES
        assert not SHARED & {stage_of(name) for name in run.logged}
    for stage in SHARED:
        assert len(list((folder / "store" / stage).glob(f"*/{MANIFEST}"))) == 1
    assert all(artifact.committed for artifact in server.artifacts.values())


def test_the_lineage_begins_with_the_data(swept: tuple[Path, WandbServer]) -> None:
    _, server = swept
    made_from = {
        own.fields["name"]: json.loads(own.fields["metadata"])["made_from"]
        for own in server.artifacts.values()
        if "made_from" in (own.fields.get("metadata") or "")
    }
    assert [made_from[name] for name in made_from if stage_of(name) == "data"] == [[]]
    found: set[str] = set()
    todo = {min(name for name in made_from if stage_of(name) == "align")}
    while todo - found:
        found |= todo
        todo = {source for name in todo for source in made_from[name]}
    assert {stage_of(name) for name in found} == {"align", *SHARED} - {"contamination"}


def test_a_multirun_over_the_same_points_comes_to_the_same(swept: tuple[Path, WandbServer], tmp_path: Path) -> None:
    folder, _ = swept
    small = [o for o in TINY if not o.startswith(("negatives=", "filter.max_negatives=", "generator.samples="))]
    points, sweep = "negatives=1,4,8,16", f"hydra.sweep.dir={tmp_path / 'sweep'}"
    ended = run_train("-m", points, *small, *LARGE, "tracking=none", sweep, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for number in range(4):
        agents = read_result(folder / "outputs" / f"run{number}")
        assert came_to(read_result(tmp_path / "sweep" / str(number))) == came_to(agents)


def test_the_key_signs_requests_and_is_in_nothing_that_is_written_or_sent(swept: tuple[Path, WandbServer]) -> None:
    folder, server = swept
    assert {request.key for request in server.requests if request.path == "/graphql"} == {SECRET}
    assert [r.path for r in server.requests if SECRET in r.path or SECRET.encode() in r.body] == []
    assert holds_secret(folder) == []
