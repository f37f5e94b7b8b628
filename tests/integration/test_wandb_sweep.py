"""W&B's real commands, `wandb sweep` and `wandb agent`, drive `train.py` against a stand-in of the server."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from jobs import ROOT, SECRET, TIMEOUT, TINY
from selfcontrast.store import MANIFEST
from wandb_server import WandbServer, serving

SHARED = {"data", "contamination", "sft", "generate", "embed", "filter", "reference"}  # by every K
# `wandb agent` asks the server every 5 s whether there is more to do: too slow for a test.
WANDB = "from wandb.cli.cli import cli; from wandb.wandb_agent import Agent; Agent.POLL_INTERVAL = 0.2; cli()"


def wandb(*arguments: str, cwd: Path, env: Mapping[str, str]) -> str:
    """What a command of W&B's prints; it must end well."""
    ended = subprocess.run(
        [sys.executable, "-c", WANDB, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WandbServer]:
    """K of 1 and 2 by an agent; everything it wrote lies in the folder."""
    folder = tmp_path_factory.mktemp("swept")
    sweep = yaml.safe_load((ROOT / "sweeps/negatives.yaml").read_text())
    sweep["program"] = str(ROOT / "train.py")
    sweep["command"] = [*sweep["command"][:3], *(o for o in TINY if o != "negatives=2"), "${args_no_hyphens}"]
    sweep["parameters"] = {"negatives": {"values": [1, 2]}, "seed": {"value": 1}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_", "SELFCONTRAST_"))}
    kept |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    kept |= {"SELFCONTRAST_STORE": str(folder / "store"), "NETRC": str(folder / "netrc"), "HOME": str(folder)}
    with serving() as server:
        env = {**kept, **server.environment, "WANDB_API_KEY": SECRET}
        said = wandb("sweep", "sweep.yaml", cwd=folder, env=env)
        said += wandb("agent", "--count", "2", server.sweep["name"], cwd=folder, env=env)
        (folder / "said").write_text(said)
        return folder, server


def test_the_agents_runs_finish_and_their_config_differs_in_k_alone(swept: tuple[Path, WandbServer]) -> None:
    _, server = swept
    runs = list(server.runs.values())
    assert [run.exit_code for run in runs] == [0, 0]
    assert [run.config["negatives"] for run in runs] == [1, 2]
    one, two = ({k: v for k, v in run.config.items() if k not in ("negatives", "_wandb")} for run in runs)
    assert one == two
    assert {"sft", "objective", "provenance", "seed", "max_length"} <= one.keys()


def test_a_run_is_whole(swept: tuple[Path, WandbServer]) -> None:
    _, server = swept
    for k, run in zip((1, 2), server.runs.values(), strict=True):
        assert run.fields["sweep"] == server.sweep["name"] == run.fields["groupName"]
        assert (run.fields["jobType"], run.fields["displayName"]) == ("train", f"Self-Contrast K={k} s1")
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert run.fields["commit"] == head.stdout.strip()
        assert {"python", "cpu", "memory", "git"} <= json.loads(run.files["wandb-metadata.json"]).keys()
        assert b"torch==" in run.files["requirements.txt"]
        assert run.series("align/step") == sorted(run.series("align/step"))
        assert len(run.series("align/accuracy")) == len(run.series("align/loss")) > 10
        assert 0 <= run.summary["value"] <= 1
        assert run.series("tables/samples")


def test_what_the_second_run_recalls_it_uses_and_does_not_log(swept: tuple[Path, WandbServer]) -> None:
    folder, server = swept
    first, second = server.runs.values()
    assert not first.used
    logged = {name.rsplit("-", 1)[0] for name in first.logged}
    assert SHARED | {"align", "evaluate"} <= logged
    used = {name.rsplit("-", 1)[0] for name in second.used}
    assert used == SHARED | {"evaluate", "answers", "benchmark"}  # of the fine-tuned model
    assert not SHARED & {name.rsplit("-", 1)[0] for name in second.logged}
    for stage in SHARED:
        assert len(list((folder / "store" / stage).glob(f"*/{MANIFEST}"))) == 1
    assert all(artifact.committed for artifact in server.artifacts.values())


def test_the_key_signs_requests_and_is_in_nothing_that_is_written_or_sent(swept: tuple[Path, WandbServer]) -> None:
    folder, server = swept
    assert {request.key for request in server.requests if request.path == "/graphql"} == {SECRET}
    assert [r.path for r in server.requests if SECRET in r.path or SECRET.encode() in r.body] == []
    written = [file for file in folder.rglob("*") if file.is_file()]
    assert len(written) > 50
    assert [file for file in written if SECRET.encode() in file.read_bytes()] == []
