import os
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import wandb
from omegaconf import OmegaConf

from selfcontrast.errors import FAILED, UserError
from selfcontrast.report.__main__ import main
from selfcontrast.report.hook import SweepReport, finish_sweep
from selfcontrast.results import Result
from wandb_files import OfflineRun

OFFLINE = {
    "_target_": "selfcontrast.tracking.wandb.WandbTracking",
    "project": "selfcontrast",
    "entity": None,
    "group": None,
    "tags": [],
    "mode": "offline",
    "upload": False,
}


def test_report_command_reads_a_run_or_a_sweep(
    make: Callable[..., Result],
    write: Callable[[Path, Result], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "run", make())
    write(tmp_path / "sweep" / "0", make(k=1))
    main([str(tmp_path / "run")])
    assert (tmp_path / "run" / "report.html").exists()
    assert "score against K" not in capsys.readouterr().out
    main([str(tmp_path / "sweep")])
    assert (tmp_path / "sweep" / "results.csv").exists()
    assert "score against K" in capsys.readouterr().out


def test_report_command_of_several_folders_writes_one_report(
    make: Callable[..., Result],
    write: Callable[[Path, Result], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "run", make(k=4))
    write(tmp_path / "sweep" / "0", make(k=1))
    folders = [str(tmp_path / "run"), str(tmp_path / "sweep")]
    with pytest.raises(UserError, match="--to DIR"):
        main(folders)
    main([*folders, "--to", str(tmp_path / "new" / "both")])
    assert pd.read_csv(tmp_path / "new" / "both" / "results.csv")["negatives"].tolist() == [1, 4]
    assert not (tmp_path / "sweep" / "results.csv").exists()
    assert "2 jobs" in capsys.readouterr().out


def test_report_command_of_a_folder_without_results_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"result\.json"):
        main([str(tmp_path)])


def test_finish_sweep_writes_the_report_of_a_multirun(
    make: Callable[..., Result],
    write: Callable[[Path, Result], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SweepReport, "folder", None)
    finish_sweep()
    assert capsys.readouterr().out == ""
    write(tmp_path / "0", make())
    SweepReport().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    finish_sweep()
    assert (tmp_path / "report.html").exists()
    assert "score against K" in capsys.readouterr().out


def test_finish_sweep_tracked_by_wandb_logs_its_own_run(
    make: Callable[..., Result],
    write: Callable[[Path, Result], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for job, k in enumerate((1, 4)):
        write(tmp_path / "mine" / str(job), make(k=k, policy=0.6 + k / 40, config={"tracking": OFFLINE}))
    failed = tmp_path / "mine" / "2"
    (failed / ".hydra").mkdir(parents=True)
    (failed / FAILED).write_text("too many")
    monkeypatch.setattr(SweepReport, "folder", tmp_path / "mine")
    finish_sweep()
    wandb.teardown()
    (file,) = tmp_path.rglob("*.wandb")
    run = OfflineRun(file)
    assert run.fields == {"group": "mine", "job_type": "sweep report", "name": "sweep mine"}
    assert run.exit_code == 0
    assert (run.summary["best/negatives"], run.summary["best/estimate"], run.summary["sft"]) == (4, 0.7, 0.6)
    assert (run.summary["failed"], run.series("tables/sweep.nrows"), run.series("tables/failed.nrows")) == (1, [2], [1])
    (report,) = (artifact for artifact in run.artifacts if artifact.type == "report")
    assert {entry.path for entry in report.manifest.contents} == {
        "report.html", "results.csv", "results.md", "results.tex"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("n_bootstrap", "prompts", "overrides", "message"),
    [
        (
            200,
            384,
            ["negatives=1,2,4,8", "seed=1,2,3"],
            "of 12 jobs.*smallest p-value is 0.005.*evaluation.n_bootstrap",
        ),
        (4000, 384, ["negatives=1,2,4,8", "seed=1,2,3"], ""),
        (200, 384, ["negatives=1,2,4,8"], ""),  # 4 times 1/201 is 0.02
        (4000, 6, ["negatives=1,2"], "of 2 jobs.*smallest p-value is 0.031.*evaluation.prompts"),  # 2 / 2^6 is 0.031
        (200, 384, ["negatives=range(1,13)"], "of 12 jobs"),
        (100, None, ["negatives=1,2,4,8,16", "+experiment=miniature"], ""),  # 5 times 1/101 is below 0.05
    ],
)
def test_sweep_with_too_many_tests_warns_before_compute(
    n_bootstrap: int, prompts: int | None, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"n_bootstrap": n_bootstrap, "prompts": prompts, "confidence": 0.95}
    hydra = {"sweep": {"dir": "out"}, "overrides": {"task": overrides}}
    SweepReport().on_multirun_start(OmegaConf.create({"evaluation": evaluation, "hydra": hydra}))
    SweepReport.folder = None
    out = " ".join(capsys.readouterr().out.split())
    assert bool(message) == bool(out)
    assert re.search(message, out)
