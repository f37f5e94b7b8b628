import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import wandb

from selfcontrast.errors import UserError
from selfcontrast.store import Artifact, Store
from selfcontrast.tracking import NoTracking, WandbTracking
from wandb_files import OfflineRun

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

    first = store.get("sft", 1, {"lr": 0.1}, {}, compute)
    return first, store.get("align", 1, {"negatives": 2}, {"sft": first}, compute)


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
    assert run.summary["value"] == 0.75
    found = {artifact.name: artifact for artifact in run.artifacts}
    assert sft.key in found[f"sft-{sft.key}"].aliases
    assert f'"made_from":["sft-{sft.key}"]' in found[f"align-{align.key}"].metadata.replace(" ", "")
    contents = found[f"align-{align.key}"].manifest.contents  # by default no file is uploaded
    place = align.path.resolve().as_uri()
    assert {entry.ref for entry in contents} == {f"{place}/file.txt", f"{place}/manifest.json"}
    assert "report" in [artifact.type for artifact in run.artifacts]


def test_with_upload_an_artifact_holds_its_files(tmp_path: Path, artifacts: tuple[Artifact, Artifact]) -> None:
    with tracking("offline", upload=True).run("a name", {}, tmp_path) as tracker:
        tracker.artifact(artifacts[0], [])
    (run,) = offline_runs(tmp_path)
    assert {entry.path for entry in run.artifacts[0].manifest.contents} == {"file.txt", "manifest.json"}


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
