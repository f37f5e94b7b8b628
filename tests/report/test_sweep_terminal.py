"""Test a sweep's report on the terminal."""

from collections.abc import Callable
from pathlib import Path

import pytest

from selfcontrast.report.sweep import read_sweep
from selfcontrast.report.sweep_terminal import plot, print_sweep
from selfcontrast.results import Result

Make = Callable[..., Result]
Write = Callable[[Path, Result], None]


def test_print_sweep_fits_80_columns(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweep_folder)
    monkeypatch.setenv("COLUMNS", "80")
    print_sweep(read_sweep([sweep_folder]))
    out = capsys.readouterr().out
    assert "4  0.700 [0.650, 0.750] +0.100 [+0.060, +0.140] 55.0% 0.002 0.006  3.5" in out
    assert "no result: job 1 (negatives=99)" in out
    assert "figure   figure.png" in out
    assert max(map(len, out.splitlines())) <= 80


def test_print_sweep_of_methods_fits_80_columns(
    make: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names wrap, and numbers do not."""
    for job, method in enumerate(("a-method-with-a-long-name", "least_consistent", "random")):
        for seed in (1, 2, 3)[: job + 1]:
            write(tmp_path / f"{job}-{seed}", make(policy=0.6 + seed / 50, seed=seed, config={"label": method}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    print_sweep(read_sweep([tmp_path]))
    out = capsys.readouterr().out
    assert "0.620 [0.570, 0.670] +0.020 [-0.020, +0.060]" in out
    assert "2 (1, 2)" in out
    assert max(map(len, out.splitlines())) <= 80


def test_print_sweep_without_results_names_missing_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text("- negatives=99\n")
    print_sweep(read_sweep([tmp_path]))
    assert capsys.readouterr().out.split() == ["no", "result:", "job", "0", "(negatives=99)"]


def test_plot_puts_estimates_on_one_scale(sweep_folder: Path) -> None:
    """The means 0.65, 0.7, 0.5 and SFT's 0.6 are on a scale of 60 characters from the lowest bound, 0.45, to 0.75."""
    lines = plot(read_sweep([sweep_folder]))
    assert [line.index("●") - 8 for line in lines[:3]] == [39, 49, 10]  # 59 * (x - 0.45) / 0.3, rounded
    assert {line.find("│") - 8 for line in lines if "│" in line} <= {29, 30}


def test_plot_of_methods_names_each_above_its_lines(make: Make, write: Write, tmp_path: Path) -> None:
    """Lines of different methods look alike, so the method is named above its lines."""
    for method in ("random", "rft"):
        for k in (1, 4):
            write(tmp_path / f"{method}{k}", make(k=k, config={"label": method}))
    lines = plot(read_sweep([tmp_path]))
    assert [line.split()[0] for line in lines[:6]] == ["random", "K=1", "K=4", "rft", "K=1", "K=4"]
