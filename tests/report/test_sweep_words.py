"""Test the headline and the sentences of a sweep's report: gains, losses, the best point, and seeds."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from selfcontrast.report.sweep import best, read_sweep
from selfcontrast.report.sweep_figure import figure
from selfcontrast.report.sweep_numbers import by_point
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.report.sweep_terminal import plot
from selfcontrast.report.sweep_words import headline, sentence, unequal_seeds
from selfcontrast.results import Result

Make = Callable[..., Result]
Write = Callable[[Path, Result], None]


def test_sentence_names_gains_losses_and_the_best(sweep_folder: Path) -> None:
    sweep = read_sweep([sweep_folder])
    assert headline(sweep) == "Score: 0.650 at K=1, 0.500 at K=16; SFT 0.600"
    assert "Clear gain over SFT at K=4." in sentence(sweep)
    assert "Clear loss against SFT at K=16." in sentence(sweep)
    assert "No significant difference from SFT at K=1." in sentence(sweep)
    assert "Highest: K=4 with 0.700" in sentence(sweep)


def test_sentence_counts_many_points_without_a_difference(make: Make, write: Write, tmp_path: Path) -> None:
    for job in range(8):
        write(tmp_path / str(job), make(policy=0.61, p=0.9, config={"label": f"m{job}"}))
    text = sentence(read_sweep([tmp_path]))
    assert "No significant difference from SFT at 8 of 8 points." in text
    assert "m0" not in text.partition("Highest")[0]


def test_gain_is_not_clear_after_holm_correction(make: Make, write: Write, tmp_path: Path) -> None:
    """p = 0.02 is below 0.05, but Holm's correction for three jobs makes it 0.06."""
    for job, (policy, p) in enumerate(((0.7, 0.02), (0.61, 0.8), (0.61, 0.9))):
        write(tmp_path / str(job), make(policy=policy, p=p, k=2**job))
    points = read_sweep([tmp_path]).points
    assert [point.p_holm for point in points] == pytest.approx([0.06, 1, 1])
    assert points[0].outcome == "level"
    assert "Clear" not in sentence(read_sweep([tmp_path]))


def test_headline_of_variants_names_the_best_beside_its_own_sft(make: Make, write: Write, tmp_path: Path) -> None:
    """An earlier version averaged SFT over data with and without noise, and showed a score that no job had."""
    for job, (noise, sft) in enumerate([(0.0, 0.534), (0.3, 0.84)]):
        for k in (1, 4):
            config = {"data": {"noise": noise}}
            write(tmp_path / f"{job}-{k}", make(sft=sft, policy=sft + k / 100, control=sft + 0.05, k=k, config=config))
    sweep = read_sweep([tmp_path])
    # Four p-values of 0.002: Holm's correction makes them 0.008.
    assert headline(sweep) == (
        "Best score of 4: 0.880 with data.noise=0.3 (K=4); SFT 0.840; p = 0.008, corrected for 4 comparisons (Holm)"
    )
    assert "SFT's T=0.7 decoding alone gives 0.890" in sentence(sweep)
    levels = {str(line.get_label()): line.get_ydata()[0] for line in figure(sweep).axes[0].lines}
    assert levels["each variant's SFT model"] == 0
    assert [line.strip() for line in plot(sweep) if "SFT" in line] == ["SFT 0.534", "SFT 0.840"]


def test_headline_of_variants_compares_on_shared_seeds(make: Make, write: Write, tmp_path: Path) -> None:
    """Only "a" has seed 2, on which its score is higher by 0.2. On the shared seed 1, "b" is the best."""
    for method, seed, score in (("a", 1, 0.6), ("a", 2, 0.8), ("b", 1, 0.65)):
        write(tmp_path / f"{method}{seed}", make(policy=score, sft=0.55, seed=seed, config={"label": method}))
    sweep = read_sweep([tmp_path])
    assert headline(sweep).startswith("Best score of 2: 0.650 with b (K=4); SFT 0.550 (seed 1); p = ")
    assert "a (K=4)" not in unequal_seeds(sweep)
    assert "b (K=4) lacks seed 2" in unequal_seeds(sweep)


def test_headline_of_variants_without_a_common_seed_names_no_best(make: Make, write: Write, tmp_path: Path) -> None:
    for method, seed in (("a", 1), ("b", 2)):
        write(tmp_path / method, make(seed=seed, config={"label": method}))
    assert "no seed is common to all" in headline(read_sweep([tmp_path]))


def test_headline_of_variants_without_p_values_claims_no_correction(make: Make, write: Write, tmp_path: Path) -> None:
    for method in ("a", "b"):
        write(tmp_path / method, make(p=math.nan, config={"label": method}))
    assert "Holm" not in headline(read_sweep([tmp_path]))


def test_points_with_unequal_seeds_are_compared_on_shared_seeds(make: Make, write: Write, tmp_path: Path) -> None:
    """The policy equals SFT. Only K=16 has seed 2, whose SFT is better. An earlier version showed a rise to 0.65."""
    for k, seed in ((1, 1), (16, 1), (16, 2)):
        level = {1: 0.6, 2: 0.7}[seed]
        write(tmp_path / f"{k}-{seed}", make(sft=level, policy=level, control=level, k=k, seed=seed, p=1.0))
    sweep = read_sweep([tmp_path])
    assert headline(sweep) == "Score: 0.600 at K=1, 0.600 at K=16; SFT 0.600 (seed 1)"
    assert "Points have different seeds (compared on seed 1, which all have): K=1 lacks seed 2." in sentence(sweep)
    assert best(sweep).seeds == [1]
    line = next(line for line in figure(sweep).axes[0].lines if line.get_label() == "Self-Contrast")
    assert list(line.get_ydata()) == pytest.approx([0, 0])
    heads, rows = by_point(sweep)
    assert [row[heads.index("seeds")] for row in rows] == ["1 (1)", "2"]
    write_sweep(sweep)
    assert "K=1 lacks seed 2" in (tmp_path / "report.html").read_text()


def test_points_without_a_common_seed_are_not_compared(make: Make, write: Write, tmp_path: Path) -> None:
    for k, seed in ((1, 1), (4, 2)):
        write(tmp_path / str(k), make(k=k, seed=seed, policy=0.6 + seed / 10))
    sweep = read_sweep([tmp_path])
    assert headline(sweep) == "Score: 0.700 at K=1 (seed 1), 0.800 at K=4 (seed 2): different seeds, so not compared"
    assert "no seed is common to all" in sentence(sweep)


def test_sharper_control_is_a_mean_over_seeds(make: Make, write: Write, tmp_path: Path) -> None:
    """The control scores 0.65 with seed 1 and 0.85 with seed 2."""
    for seed, control in ((1, 0.65), (2, 0.85)):
        write(tmp_path / str(seed), make(seed=seed, control=control, policy=0.6 + seed / 100))
    sweep = read_sweep([tmp_path])
    assert "SFT's T=0.7 decoding alone gives 0.750 on average over its seeds." in sentence(sweep)
    lines = {str(line.get_label()): line.get_ydata()[0] for line in figure(sweep).axes[0].lines}
    assert lines["SFT, T=0.7 (0.750)"] == pytest.approx(0.15)


def test_sharper_control_of_one_seed_is_no_mean(make: Make, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "0", make(control=0.65))
    assert "SFT's T=0.7 decoding alone gives 0.650." in sentence(read_sweep([tmp_path]))
