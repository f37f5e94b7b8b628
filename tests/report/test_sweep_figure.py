"""Test the figure of a sweep, which has a line per method or a row per variant."""

from collections.abc import Callable
from pathlib import Path

import pytest

from selfcontrast.report.sweep import read_sweep
from selfcontrast.report.sweep_figure import MOST_RANKED, figure, ranked
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.report.sweep_words import sentence
from selfcontrast.results import Result

Make = Callable[..., Result]
Write = Callable[[Path, Result], None]


def test_figure_draws_a_variant_with_one_k_as_a_baseline(make: Make, write: Write, tmp_path: Path) -> None:
    for k in (1, 4):
        write(tmp_path / f"ours{k}", make(k=k, config={"label": "Self-Contrast"}))
    write(tmp_path / "other", make(policy=0.25, k=4, config={"label": "DPO_std"}))  # SFT has 0.6
    (axes,) = figure(read_sweep([tmp_path])).axes
    x_by_label = {str(line.get_label()): list(line.get_xdata()) for line in axes.lines}
    assert x_by_label["Self-Contrast"] == pytest.approx([1, 4], rel=0.05)  # shifted, beside the other variant
    assert x_by_label["DPO_std"] == pytest.approx([4], rel=0.05)
    levels = [line.get_ydata() for line in axes.lines if list(line.get_xdata()) == [0, 1]]  # lines across the figure
    assert [list(level) for level in levels] == [[0, 0], pytest.approx([-0.35, -0.35]), pytest.approx([0.05, 0.05])]


def test_figure_draws_paired_differences_with_their_intervals(make: Make, write: Write, tmp_path: Path) -> None:
    """The mean score's interval, ±0.05, is wider, since it ignores that both systems answer the same prompts."""
    write(tmp_path / "0", make(sft=0.6, policy=0.7, half=0.02, k=1))
    (axes,) = figure(read_sweep([tmp_path])).axes
    assert any(list(line.get_ydata()) == pytest.approx([0.08, 0.12]) for line in axes.lines)


@pytest.mark.parametrize(("control", "is_near"), [(0.72, True), (0.9, False)])
def test_figure_notes_a_sharper_sft_that_would_stretch_its_axis(
    control: float, is_near: bool, make: Make, write: Write, tmp_path: Path
) -> None:
    write(tmp_path / "0", make(sft=0.6, policy=0.7, half=0.02, control=control))
    (axes,) = figure(read_sweep([tmp_path])).axes
    assert (f"SFT, T=0.7 ({control:.3f})" in axes.get_legend_handles_labels()[1]) == is_near
    assert axes.get_title(loc="right") == ("" if is_near else "outside: SFT, T=0.7 +0.300")
    assert axes.get_ylim()[1] < 0.2


def test_figure_names_variants_in_its_legend(make: Make, write: Write, tmp_path: Path) -> None:
    for job, beta in enumerate((0.1, 0.5)):
        write(tmp_path / str(job), make(config={"objective": {"beta": beta}}))
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    svg = (tmp_path / "figure.svg").read_text()
    assert "Self-Contrast, objective.beta=0.1" in svg
    assert "Self-Contrast, objective.beta=0.5" in svg
    assert "objective.beta=0.5 (K=4)" in sentence(sweep)


def test_figure_of_many_variants_ranks_them_by_score(make: Make, write: Write, tmp_path: Path) -> None:
    """Job 7 scores 0.7. Any other job i scores 0.6 - i / 100. The best job has the first row. Rows show SFT's score."""
    for job in range(12):
        score = 0.7 if job == 7 else 0.6 - job / 100
        write(tmp_path / str(job), make(policy=score, config={"objective": {"beta": job / 10}}))
    sweep = read_sweep([tmp_path])
    (axes,) = figure(sweep).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    order = [7, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert names == [f"objective.beta={job / 10} (K=4)" for job in order]
    points = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"}
    assert [points[row] for row in range(3)] == pytest.approx([0.7, 0.6, 0.59])
    ticks = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"]
    assert ticks == pytest.approx([0.6] * 12)
    write_sweep(sweep)
    assert "Score of each variant" in (tmp_path / "report.html").read_text()


def test_figure_of_too_many_variants_shows_the_best(make: Make, write: Write, tmp_path: Path) -> None:
    for job in range(MOST_RANKED + 2):
        write(tmp_path / str(job), make(policy=0.3 + job / 100, config={"objective": {"beta": job}}))
    sweep = read_sweep([tmp_path])
    assert [point.variant for point in ranked(sweep)][:2] == ["objective.beta=31", "objective.beta=30"]
    write_sweep(sweep)
    assert f"the best {MOST_RANKED} of {MOST_RANKED + 2}" in (tmp_path / "report.html").read_text()
