"""Test the files of a sweep's report: page, figure and tables."""

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from selfcontrast.errors import FAILED
from selfcontrast.report.sweep import read_sweep
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.report.sweep_terminal import plot, print_sweep
from selfcontrast.report.text import NO_BREAK_SPACE
from selfcontrast.results import Result

Write = Callable[[Path, Result], None]


def test_write_sweep_writes_all_files(sweep_folder: Path) -> None:
    write_sweep(read_sweep([sweep_folder]))
    table = pd.read_csv(sweep_folder / "results.csv")
    assert table["negatives"].tolist() == [1, 4, 16]
    assert table["score"].tolist() == pytest.approx([0.65, 0.7, 0.5])
    assert table["difference_low"].tolist() == pytest.approx([-0.05, 0.06, -0.14])
    # Holm: 0.002 times 3; then 0.002 times 2, raised to the value before; then 0.4 times 1.
    assert table["p_value"].tolist() == pytest.approx([0.4, 0.002, 0.002])
    assert table["p_holm"].tolist() == pytest.approx([0.4, 0.006, 0.006])
    assert table["negatives_per_prompt"].tolist() == [0.5, 3.5, 15.5]
    # `seconds` counts all stages of a job; `seconds_own` only those that this job computed.
    jobs = read_sweep([sweep_folder]).jobs
    assert table["seconds"].tolist() == [sum(stage["seconds"] for stage in job.result.stages) for job in jobs]
    assert (table["seconds_own"] <= table["seconds"]).all()
    assert (sweep_folder / "results.md").read_text().count("\n") == 2 + 3
    assert (sweep_folder / "results.tex").read_text().count("&") == 4 * 12  # 13 columns
    page = (sweep_folder / "report.html").read_text().replace(NO_BREAK_SPACE, " ")
    for expected in ("0.700 [0.650, 0.750]", "+0.100 [+0.060, +0.140]", "negatives=99", "1 min 01 s", "15.5"):
        assert expected in page, expected
    assert "://" not in page
    assert (sweep_folder / "figure.png").stat().st_size > 0
    assert "K: negatives per prompt" in (sweep_folder / "figure.svg").read_text()


def test_error_of_a_failed_job_is_shown(sweep_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep_folder / "1" / FAILED).write_text("negatives=99 is <b>too many</b>")
    assert [job.why for job in read_sweep([sweep_folder]).missing] == ["negatives=99 is <b>too many</b>"]
    print_sweep(read_sweep([sweep_folder]))
    assert "negatives=99 is <b>too many</b>" in capsys.readouterr().out
    write_sweep(read_sweep([sweep_folder]))
    page = (sweep_folder / "report.html").read_text()
    assert "negatives=99 is &lt;b&gt;too many&lt;/b&gt;" in page


def test_sweep_with_unknown_intervals_is_reported(unbounded: Result, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "0", unbounded)
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    assert math.isnan(pd.read_csv(tmp_path / "results.csv")["score_low"].item())
    assert plot(sweep)


def test_proxy_is_labelled_everywhere(
    proxy: Result, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "0", proxy)
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    assert "a proxy, not quality" in (tmp_path / "figure.svg").read_text()
    assert "similarity (proxy)" in (tmp_path / "report.html").read_text()
    print_sweep(sweep)
    assert "similarity (proxy) against K" in capsys.readouterr().out
