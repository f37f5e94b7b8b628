import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb

from jobs import ROOT
from selfcontrast.errors import UserError
from selfcontrast.preemption import ENDED, Stopped
from selfcontrast.store import Artifact, Stage, Store
from selfcontrast.tracking import CsvTracking, NoTracking, WandbTracking
from wandb_files import OfflineRun
from wandb_server import WandbServer, serving

KEY = "f" * 40


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the developer's key nor the settings of an agent."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def tracking(mode: str = "auto", upload: bool = False) -> WandbTracking:
    return WandbTracking("selfcontrast", None, "a group", ["a tag"], mode, upload)


@pytest.fixture
def artifacts(tmp_path: Path) -> tuple[Artifact, Artifact]:
    """Two, of which the second is made from the first."""
    store = Store(tmp_path / "store")

    def compute(folder: Path) -> dict[str, int]:
        (folder / "file.txt").write_text("content")
        return {"prompts": 3}

    first = store.get(Stage("sft", 1, {"lr": 0.1}, {}, compute))
    return first, store.get(Stage("align", 1, {"negatives": 2}, {"sft": first}, compute))


# --- which mode


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
def test_the_mode(monkeypatch: pytest.MonkeyPatch, mode: str, environment: dict[str, str], resolved: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracking(mode).check()
    assert tracking(mode).resolved_mode() == resolved


def test_a_key_in_the_netrc_file_counts(tmp_path: Path) -> None:
    assert tracking().resolved_mode() == "offline"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert tracking().resolved_mode() == "online"


def test_a_key_of_a_server_of_ones_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `wandb login --host` leaves it: the host in W&B's settings, the key under it."""
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "netrc").write_text(f"machine wandb.example\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example\n")
    assert tracking().resolved_mode() == "online"


def test_online_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="online needs a key"):
        tracking("online").check()
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="online needs a key"):
        tracking("offline").check()


def test_a_mode_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^tracking\.mode=cloud: one of auto, online, offline, disabled$"):
        tracking("cloud")
    for mode in ("cloud", "auto"):  # auto is ours, and W&B would not know it
        monkeypatch.setenv("WANDB_MODE", mode)
        with pytest.raises(UserError, match=f"^WANDB_MODE={mode}: one of online, offline, disabled$"):
            tracking().check()


# --- what a run holds


def offline_runs(folder: Path) -> Iterator[OfflineRun]:
    wandb.teardown()  # its service writes behind our back until it ends
    for file in sorted(folder.rglob("*.wandb"), key=lambda file: file.stat().st_mtime):
        yield OfflineRun(file)


def test_an_offline_run_holds_all_it_was_given(tmp_path: Path, artifacts: tuple[Artifact, Artifact]) -> None:
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
    found = {artifact.name: artifact for artifact in run.artifacts}
    assert sft.key in found[f"sft-{sft.key}"].aliases
    assert f'"made_from":["sft-{sft.key}"]' in found[f"align-{align.key}"].metadata.replace(" ", "")
    contents = found[f"align-{align.key}"].manifest.contents  # by default no file is uploaded
    place = align.path.resolve().as_uri()
    assert {entry.ref for entry in contents} == {f"{place}/file.txt", f"{place}/manifest.json"}
    assert "report" in [artifact.type for artifact in run.artifacts]
    (code,) = (artifact for artifact in run.artifacts if artifact.type == "code")
    assert "tracking.py" in {entry.path for entry in code.manifest.contents}
    assert run.config["provenance"]["packages"]["wandb"] == wandb.__version__


def test_with_upload_an_artifact_holds_its_files(tmp_path: Path, artifacts: tuple[Artifact, Artifact]) -> None:
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


def test_a_job_that_fails_ends_its_run_as_failed(tmp_path: Path) -> None:
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


def test_what_was_changed_since_the_commit_is_kept(tmp_path: Path) -> None:
    """Of the checkout that the code lies in, wherever the job is started."""
    checkout, folder = tmp_path / "checkout", tmp_path / "run"
    subprocess.run(["git", "clone", "-q", "--local", str(ROOT), str(checkout)], check=True)
    git = ["git", "-C", str(checkout)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    shutil.copytree(ROOT / "src", checkout / "src", dirs_exist_ok=True)
    with open(checkout / "src/selfcontrast/errors.py", "a") as file:
        file.write("# changed by hand\n")
    own = {"PYTHONPATH": str(checkout / "src"), "RUN": str(folder)}
    folder.mkdir()
    subprocess.run([sys.executable, "-c", CHECKOUT], cwd=tmp_path, env={**os.environ, **own}, check=True)
    (patch,) = folder.rglob("diff.patch")
    assert "+# changed by hand" in patch.read_text().splitlines()
    (run,) = offline_runs(folder)
    assert run.commit == head
    assert run.config["provenance"]["commit"] == head[:12] + "+"


# --- a run that goes on


def online(monkeypatch: pytest.MonkeyPatch, server: WandbServer) -> WandbTracking:
    for name, value in {**server.environment, "WANDB_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    return tracking("online")


def test_a_job_that_was_cut_short_goes_on_in_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: tuple[Artifact, Artifact]
) -> None:
    def job(settings: dict[str, int], steps: range, fail: bool) -> None:
        with tracked.run("a name", settings, tmp_path) as tracker:
            tracker.artifact(replace(artifacts[0], cached=not fail), [])
            for step in steps:
                tracker.log("align", {"step": step, "loss": 1 / step})
            if fail:
                raise RuntimeError("out of memory")

    with serving() as server:
        tracked = online(monkeypatch, server)
        with pytest.raises(RuntimeError, match="out of memory"):
            job({"negatives": 2}, range(1, 4), fail=True)
        (run,) = server.runs.values()
        assert run.exit_code == 1
        assert run.summary["error"] == "RuntimeError: out of memory"
        job({"negatives": 2}, range(2, 6), fail=False)  # from the checkpoint of step 1 on
        assert list(server.runs.values()) == [run]
        job({"negatives": 2}, range(1, 3), fail=False)  # the same once more, which is another run
        job({"negatives": 3}, range(1, 3), fail=False)
        wandb.teardown()
    assert run.exit_code == 0
    assert run.series("align/step") == [1, 2, 3, 4, 5]
    name = f"sft-{artifacts[0].key}"
    assert (name in run.logged, run.used) == (True, [name])
    _, again, other = server.runs.values()
    assert (again.series("align/step"), again.used, name in again.logged) == ([1, 2], [name], False)
    assert other.config["negatives"] == 3


@pytest.mark.slow
def test_nothing_is_lost_while_the_server_is_out_of_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: tuple[Artifact, Artifact]
) -> None:
    """Its first requests fail, and then some at the end, among them the artifact's."""
    with serving() as server:
        tracked = online(monkeypatch, server)
        server.broken = range(5)
        with tracked.run("a name", {"negatives": 2}, tmp_path) as tracker:
            server.broken = range(server.asked, server.asked + 4)
            for step in range(1, 101):
                tracker.log("align", {"step": step, "loss": 1 / step})
            tracker.table("samples", pd.DataFrame({"prompt": ["a"]}))
            tracker.artifact(artifacts[0], [])
            tracker.summary({"value": 0.75})
        wandb.teardown()
        assert server.asked > server.broken.stop
    (run,) = server.runs.values()
    assert run.exit_code == 0
    assert run.series("align/step") == list(range(1, 101))
    assert run.summary["value"] == 0.75
    assert f"sft-{artifacts[0].key}" in run.logged
    assert all(artifact.committed for artifact in server.artifacts.values())
    assert any(name.startswith("media/table/tables/samples") for name in run.files)


def test_a_job_that_finds_no_server_runs_offline_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    with serving() as server:
        tracked = online(monkeypatch, server)
        server.broken = range(1_000_000)
        with caplog.at_level("INFO"), tracked.run("a name", {"negatives": 2}, tmp_path) as tracker:
            tracker.log("align", {"step": 1, "loss": 0.5})
        (own,) = tmp_path.glob("wandb/offline-run-*")
        (run,) = offline_runs(own)
    assert (run.exit_code, run.series("align/loss"), run.config["negatives"]) == (0, [0.5], 2)
    assert "W&B      cannot be reached" in caplog.text
    assert "to upload this run: wandb sync" in caplog.text
    assert server.runs == {}


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (Stopped(0), 0, {"stopped": "early"}),
        (SystemExit(ENDED), 143, {"error": "terminated: the same command goes on from there"}),
        (KeyboardInterrupt(), 1, {"error": "KeyboardInterrupt: "}),
    ],
)
def test_how_a_job_was_ended_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: dict[str, str]
) -> None:
    def job() -> None:
        with tracked.run("a name", {}, tmp_path):
            raise error

    with serving() as server:
        tracked = online(monkeypatch, server)
        with pytest.raises(type(error)):
            job()
        wandb.teardown()
    (run,) = server.runs.values()
    assert run.exit_code == code
    assert told.items() <= run.summary.items()
    assert ("stopped early" in run.fields["tags"]) == ("stopped" in told)


def test_the_id_that_is_given_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    with serving() as server:
        with online(monkeypatch, server).run("a name", {}, tmp_path):
            pass
        wandb.teardown()
    assert list(server.runs) == ["given"]


def test_a_group_that_the_sweep_chooses_keeps_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("wandb_version: 1\nobjective:\n  value: hinge\n")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "params.yaml"))
    monkeypatch.setenv("WANDB_SWEEP_ID", "swept")
    with tracking("offline").run("a name", {"objective": {"nll_weight": 0.5, "beta": 0.1}}, tmp_path):
        pass
    (run,) = offline_runs(tmp_path)
    assert run.config["objective"] == "hinge"
    assert (run.config["objective.nll_weight"], run.config["objective.beta"]) == (0.5, 0.1)


# --- without W&B


def test_csv_files_hold_metrics_tables_and_summary(tmp_path: Path) -> None:
    with CsvTracking().run("a name", {}, tmp_path) as tracker:
        tracker.log("sft", {"step": 1, "loss": 0.5})
        tracker.log("sft", {"step": 2, "loss": 0.25})
        tracker.log("sft", {"step": 2, "validation_loss": 0.75})
        tracker.log("sft", {"loss": 0.125, "step": 3})
        tracker.log("align", {"step": 1, "margin": 2.0})
        tracker.table("samples", pd.DataFrame({"prompt": ['a, "b"'], "answer": ["c\nd"]}))
        tracker.summary({"value": 0.75})
    assert (tmp_path / "metrics/sft.csv").read_text() == (
        "step,loss,validation_loss\n1,0.5,\n2,0.25,\n2,,0.75\n3,0.125,\n"
    )
    assert (tmp_path / "metrics/align.csv").read_text() == "step,margin\n1,2.0\n"
    assert pd.read_csv(tmp_path / "tables/samples.csv").to_dict("records") == [{"prompt": 'a, "b"', "answer": "c\nd"}]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"value": 0.75}


@pytest.mark.parametrize("off", [NoTracking(), tracking("disabled")])
def test_without_tracking_the_same_calls_leave_nothing(
    tmp_path: Path, artifacts: tuple[Artifact, Artifact], off: NoTracking | WandbTracking
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    report = tmp_path / "report.html"
    report.write_text("<html></html>")
    off.check()
    with off.run("a name", {"negatives": 2}, folder) as tracker:
        tracker.log("sft", {"step": 1, "loss": 1.0})
        tracker.table("samples", pd.DataFrame({"prompt": ["a"]}))
        tracker.artifact(artifacts[1], [artifacts[0]])
        tracker.summary({"value": 0.75})
        tracker.files(report)
    assert list(folder.rglob("*")) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"project": "a/b"}, r"tracking\.project=a/b: at most 128 characters, none of them"),
        ({"project": "x" * 129}, r"tracking\.project=x+: at most 128"),
        ({"entity": "me?"}, r"tracking\.entity=me\?"),
        ({"group": "g" * 129}, r"tracking\.group=g+"),
        ({"tags": ["fine", "t" * 65]}, r"tracking\.tags=t+…: at most 64 characters each"),
    ],
)
def test_limits_of_wandb_are_told_before_compute(setting: dict[str, Any], said: str) -> None:
    fine: dict[str, Any] = {
        "project": "p",
        "entity": None,
        "group": None,
        "tags": [],
        "mode": "offline",
        "upload": False,
    }
    with pytest.raises(UserError, match=said):
        WandbTracking(**{**fine, **setting})
