import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from wandb_runs import KEY, offline_runs, online, tracking

from jobs import ROOT
from selfcontrast.errors import UserError
from selfcontrast.store import Artifact
from selfcontrast.tracking import WandbTracking
from wandb_server import serving


@pytest.mark.parametrize(
    ("mode", "environment", "resolved"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_SWEEP_ID": "abc"}, "online"),
        ("auto", {"WANDB_SWEEP_ID": "abc", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline"),
        ("disabled", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_API_KEY": KEY}, "online"),
    ],
)
def test_mode_is_resolved_from_config_and_environment(
    monkeypatch: pytest.MonkeyPatch, mode: str, environment: dict[str, str], resolved: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracking(mode).check()
    assert tracking(mode).resolved_mode() == resolved


def test_online_without_a_key_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="online needs a key"):
        tracking("online").check()
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="online needs a key"):
        tracking("offline").check()


def test_unknown_mode_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^tracking\.mode=cloud .*auto, online, offline, disabled$"):
        tracking("cloud")
    for mode in ("cloud", "auto"):  # auto is not a mode of W&B
        monkeypatch.setenv("WANDB_MODE", mode)
        with pytest.raises(UserError, match=f"^WANDB_MODE={mode} .*of online, offline, disabled$"):
            tracking().check()


@pytest.mark.parametrize(
    ("setting", "pattern"),
    [
        ({"project": "a/b"}, r"tracking\.project=a/b .*128"),
        ({"project": "x" * 129}, r"tracking\.project=x+ .*128"),
        ({"entity": "me?"}, r"tracking\.entity=me\?"),
        ({"group": "g" * 129}, r"tracking\.group=g+"),
        ({"tags": ["fine", "t" * 65]}, r"tracking\.tags=t+… .*64"),
    ],
)
def test_values_beyond_limits_of_wandb_raise(setting: dict[str, Any], pattern: str) -> None:
    valid: dict[str, Any] = {
        "project": "p",
        "entity": None,
        "group": None,
        "tags": [],
        "mode": "offline",
        "upload": False,
    }
    with pytest.raises(UserError, match=pattern):
        WandbTracking(**{**valid, **setting})


def test_offline_run_stores_everything_logged(tmp_path: Path, artifacts: tuple[Artifact, Artifact]) -> None:
    report = tmp_path / "report.html"
    report.write_text("<html></html>")
    sft, align = artifacts
    with tracking("offline").run("a name", {"negatives": 2, "sft": {"lr": 0.1}}, tmp_path) as tracker:
        for step in (1, 2, 3):
            tracker.log("sft", {"step": step, "loss": 1 / step})
        tracker.log("align", {"step": 1, "margin": 0.5})
        tracker.table("samples", pd.DataFrame({"prompt": ["a", "b"], "answer": ["c", "d"]}))
        tracker.table("odd", pd.DataFrame({"rank": pd.array([1, None], "Int64"), "why": [float("nan"), "a"]}))
        tracker.artifact(sft, [])
        tracker.artifact(align, [sft])
        tracker.summary({"value": 0.75})
        tracker.files(report)
    (run,) = offline_runs(tmp_path)
    assert run.exit_code == 0
    assert run.config["negatives"] == 2
    assert run.config["sft"] == {"lr": 0.1}
    assert run.series("sft/loss") == [1.0, 0.5, pytest.approx(1 / 3)]
    assert run.series("sft/step") == [1, 2, 3]
    assert run.series("align/margin") == [0.5]
    assert run.series("tables/samples.nrows") == [2]
    (odd,) = tmp_path.rglob("media/table/tables/odd*.json")
    assert json.loads(odd.read_text())["data"] == [[1, None], [None, "a"]]
    assert run.summary["value"] == 0.75
    artifacts_by_name = {artifact.name: artifact for artifact in run.artifacts}
    assert sft.key in artifacts_by_name[f"sft-{sft.key}"].aliases
    assert f'"made_from":["sft-{sft.key}"]' in artifacts_by_name[f"align-{align.key}"].metadata.replace(" ", "")
    contents = artifacts_by_name[f"align-{align.key}"].manifest.contents  # by default no file is uploaded
    uri = align.path.resolve().as_uri()
    assert {entry.ref for entry in contents} == {f"{uri}/file.txt", f"{uri}/manifest.json"}
    assert "report" in [artifact.type for artifact in run.artifacts]
    (code,) = (artifact for artifact in run.artifacts if artifact.type == "code")
    assert "tracking/wandb.py" in {entry.path for entry in code.manifest.contents}
    assert run.config["provenance"]["packages"]["wandb"] == wandb.__version__


def test_upload_stores_the_files_of_an_artifact(tmp_path: Path, artifacts: tuple[Artifact, Artifact]) -> None:
    with tracking("offline", upload=True).run("a name", {}, tmp_path) as tracker:
        tracker.artifact(artifacts[0], [])
    (run,) = offline_runs(tmp_path)
    (mirrored,) = (artifact for artifact in run.artifacts if artifact.type == "sft")
    assert {entry.path for entry in mirrored.manifest.contents} == {"file.txt", "manifest.json"}


def test_two_jobs_of_one_process_are_two_runs(tmp_path: Path) -> None:
    for negatives in (1, 4):
        with tracking("offline").run(f"K={negatives}", {"negatives": negatives}, tmp_path / str(negatives)) as tracker:
            tracker.log("align", {"step": 1, "loss": float(negatives)})
    runs = list(offline_runs(tmp_path))
    assert [run.config["negatives"] for run in runs] == [1, 4]
    assert [run.series("align/loss") for run in runs] == [[1.0], [4.0]]


def test_failed_job_ends_its_run_as_failed(tmp_path: Path) -> None:
    def fail() -> None:
        with tracking("offline").run("a name", {}, tmp_path):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    (run,) = offline_runs(tmp_path)
    assert run.exit_code == 1


CHECKOUT = """
import os
from pathlib import Path
from selfcontrast.tracking import WandbTracking

with WandbTracking("selfcontrast", None, None, [], "offline", False).run("a name", {}, Path(os.environ["RUN"])):
    pass
"""


def test_uncommitted_changes_are_stored(tmp_path: Path) -> None:
    """W&B stores the checkout that holds the code, not the one that holds the working directory."""
    checkout, folder = tmp_path / "checkout", tmp_path / "run"
    subprocess.run(["git", "clone", "-q", "--local", str(ROOT), str(checkout)], check=True)
    git = ["git", "-C", str(checkout)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    shutil.copytree(ROOT / "src", checkout / "src", dirs_exist_ok=True)
    with open(checkout / "src/selfcontrast/errors.py", "a") as file:
        file.write("# changed by hand\n")
    environment = {"PYTHONPATH": str(checkout / "src"), "RUN": str(folder)}
    folder.mkdir()
    subprocess.run([sys.executable, "-c", CHECKOUT], cwd=tmp_path, env={**os.environ, **environment}, check=True)
    (patch,) = folder.rglob("diff.patch")
    assert "+# changed by hand" in patch.read_text().splitlines()
    (run,) = offline_runs(folder)
    assert run.commit == head
    assert run.config["provenance"]["commit"] == head[:12] + "+"


@pytest.mark.slow
def test_failing_server_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: tuple[Artifact, Artifact]
) -> None:
    """The first five requests fail, and so do four more after the start of the run."""
    with serving() as server:
        tracked = online(monkeypatch, server)
        server.broken = range(5)
        with tracked.run("a name", {"negatives": 2}, tmp_path) as tracker:
            server.broken = range(server.request_count, server.request_count + 4)
            for step in range(1, 101):
                tracker.log("align", {"step": step, "loss": 1 / step})
            tracker.table("samples", pd.DataFrame({"prompt": ["a"]}))
            tracker.artifact(artifacts[0], [])
            tracker.summary({"value": 0.75})
        wandb.teardown()
        assert server.request_count > server.broken.stop
    (run,) = server.runs.values()
    assert run.exit_code == 0
    assert run.series("align/step") == list(range(1, 101))
    assert run.summary["value"] == 0.75
    assert f"sft-{artifacts[0].key}" in run.logged
    assert all(artifact.committed for artifact in server.artifacts.values())
    assert any(name.startswith("media/table/tables/samples") for name in run.files)


def test_unreachable_server_runs_offline_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    with serving() as server:
        tracked = online(monkeypatch, server)
        server.broken = range(1_000_000)
        with caplog.at_level("INFO"), tracked.run("a name", {"negatives": 2}, tmp_path) as tracker:
            tracker.log("align", {"step": 1, "loss": 0.5})
        (run_folder,) = tmp_path.glob("wandb/offline-run-*")
        (run,) = offline_runs(run_folder)
    assert (run.exit_code, run.series("align/loss"), run.config["negatives"]) == (0, [0.5], 2)
    assert "W&B      cannot be reached" in caplog.text
    assert "to upload this run: wandb sync" in caplog.text
    assert server.runs == {}


def test_config_group_chosen_by_a_sweep_keeps_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("wandb_version: 1\nobjective:\n  value: hinge\n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "params.yaml"))
    monkeypatch.setenv("WANDB_SWEEP_ID", "swept")
    with tracking("offline").run("a name", {"objective": {"nll_weight": 0.5, "beta": 0.1}}, tmp_path):
        pass
    (run,) = offline_runs(tmp_path)
    assert run.config["objective"] == "hinge"
    assert (run.config["objective.nll_weight"], run.config["objective.beta"]) == (0.5, 0.1)
