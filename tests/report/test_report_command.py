from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from selfcontrast.errors import UserError
from selfcontrast.report.__main__ import main
from selfcontrast.report.hook import SweepReport, finish_sweep
from selfcontrast.results import Result


def test_a_run_and_a_sweep(
    make: Callable[..., Result],
    write: Callable[[Path, Result], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "run", make())
    write(tmp_path / "sweep" / "0", make(k=1))
    main([tmp_path / "run", tmp_path / "sweep"])
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "sweep" / "results.csv").exists()
    assert "score against K" in capsys.readouterr().out


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no result\.json"):
        main([tmp_path])


def test_after_a_multirun_its_report_is_written(
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
