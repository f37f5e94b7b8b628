from collections.abc import Callable
from pathlib import Path

import pytest

from selfcontrast.report.terminal import print_result
from selfcontrast.results import Result

MARKS = ("0.600 [", "sharpness control", "+0.1")  # text that identifies a line


def printed(result: Result, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    print_result(result, folder)
    return capsys.readouterr().out


def test_print_result_fits_80_columns(
    make: Callable[..., Result], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = printed(make(), Path("outputs/now"), capsys)
    table = out[: out.index("Better than SFT")].splitlines()
    assert max(map(len, out.splitlines())) <= 80
    sft, control, policy = (next(line for line in table if text in line) for text in MARKS)
    assert sft.split()[:2] == ["SFT", "T=1"]
    assert "0.650 [0.600, 0.700]" in control
    assert policy.split() == (
        ["Self-Contrast", "T=1", "0.700", "[0.650,", "0.750]", "+0.100", "[+0.060,", "+0.140]", "55.0%", "0.002"]
    )


def test_print_result_shows_contamination_above_the_scores(
    make: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    out = " ".join(printed(make(), Path("x"), capsys).split())
    assert out.index("Contamination: 1 of 20 test prompts") < out.index("difference from SFT")


def test_print_result_keeps_numbers_whole_in_a_narrow_terminal(
    make: Callable[..., Result], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = printed(make(), Path("outputs/now"), capsys)
    assert "0.700 [0.650, 0.750] +0.100 [+0.060, +0.140] 55.0% 0.002" in out
    assert "…" not in out


def test_print_result_to_a_pipe_is_plain_text(make: Callable[..., Result], capsys: pytest.CaptureFixture[str]) -> None:
    result = make()
    object.__setattr__(result, "name", "[bold]K=4[/bold] :smile:")
    out = printed(result, Path("outputs/now"), capsys)
    assert "\x1b" not in out
    assert "[bold]K=4[/bold] :smile:" in out


def test_print_result_shows_relative_paths_below_the_working_directory(
    make: Callable[..., Result],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = printed(make(), tmp_path / "outputs" / ("long" * 30), capsys)
    assert f"report   outputs/{'long' * 30}/report.html\n" in out
    assert "policy   store/align/0f/model\n" in out
    assert printed(make(), Path("/elsewhere"), capsys).count("/elsewhere/report.html") == 1


def test_print_result_shows_timings(make: Callable[..., Result], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in printed(make(), Path("x"), capsys).splitlines()]
    assert ["sft", "cached", "3", "min", "45", "s"] in lines
    assert ["align", "done", "1", "min", "01", "s"] in lines
    assert ["this", "run", "1", "min", "04", "s"] in lines  # filter and align


def test_print_result_labels_a_proxy(proxy: Result, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(proxy, Path("x"), capsys)
    assert "similarity (proxy), mean" in out
    assert "a proxy, not quality" in " ".join(out.split())


def test_print_result_shows_unknown_intervals_as_dashes(unbounded: Result, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(unbounded, Path("x"), capsys)
    assert "0.700 [–]" in out
    assert "nan" not in out
