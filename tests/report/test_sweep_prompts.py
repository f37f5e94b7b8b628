"""Test that a sweep's report shows each method's number of prompts if the numbers differ."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from selfcontrast.report.sweep import read_sweep
from selfcontrast.report.sweep_numbers import by_point
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.report.sweep_prompts import different_prompts
from selfcontrast.report.sweep_terminal import print_sweep
from selfcontrast.results import Result

Make = Callable[..., Result]
Write = Callable[[Path, Result], None]


def trained_on(result: Result, prompts: int) -> Result:
    """Return the result with this number of prompts in preference training."""
    stages = [
        {**stage, "summary": {**stage["summary"], "prompts": prompts}} if stage["name"] == "align" else stage
        for stage in result.stages
    ]
    return replace(result, stages=stages)


def test_sweep_with_different_numbers_of_prompts_shows_them(
    make: Make, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, method, prompts in (("a", "DPO_std", 1250), ("b", "Self-Contrast", 49), ("c", "no filter", 50)):
        write(tmp_path / name, trained_on(make(config={"label": method}), prompts))
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    print_sweep(sweep)
    note = "The jobs trained on different numbers of prompts: Self-Contrast 49, DPO_std 1,250, no filter 50."
    assert note in " ".join(capsys.readouterr().out.split())
    assert note in (tmp_path / "report.html").read_text()
    heads, _, *rows = (tmp_path / "results.md").read_text().splitlines()
    assert heads.endswith("| prompts |")
    assert {row.split("|")[2].strip(): row.split("|")[-2].strip() for row in rows} == {
        "DPO\\_std": "1,250",
        "Self-Contrast": "49",
        "no filter": "50",
    }


def test_sweep_with_equal_numbers_of_prompts_omits_them(
    make: Make, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write(tmp_path / name, trained_on(make(seed=seed), 49))
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    print_sweep(sweep)
    assert "different numbers of prompts" not in capsys.readouterr().out + (tmp_path / "report.html").read_text()
    assert "prompts |" not in (tmp_path / "results.md").read_text()


def test_by_point_of_several_seeds_shows_the_mean_number_of_prompts(make: Make, write: Write, tmp_path: Path) -> None:
    for seed, prompts in ((1, 48), (2, 51)):
        write(tmp_path / str(seed), trained_on(make(seed=seed), prompts))
    sweep = read_sweep([tmp_path])
    heads, [row] = by_point(sweep)
    assert (heads[-1], row[-1]) == ("prompts", "49.50")
    assert different_prompts(sweep).startswith("The jobs trained on different numbers of prompts: 48 to 51.")


def test_by_point_without_preference_training_has_no_number_of_prompts(
    make: Make, write: Write, tmp_path: Path
) -> None:
    sft_only = make(config={"label": "none"})
    write(tmp_path / "none", replace(sft_only, stages=[s for s in sft_only.stages if s["name"] == "sft"]))
    for name, prompts in (("a", 48), ("b", 51)):
        write(tmp_path / name, trained_on(make(config={"label": name}), prompts))
    sweep = read_sweep([tmp_path])
    assert "prompts: a 48, b 51. This" in different_prompts(sweep)
    assert {row[0]: row[-1] for row in by_point(sweep)[1]} == {"a": "48", "b": "51", "none": "–"}
