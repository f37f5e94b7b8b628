"""Test the numbers of a sweep's points: means and intervals over seeds, and costs."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from selfcontrast.report.sweep import Point, read_sweep
from selfcontrast.report.sweep_numbers import numbers
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.report.sweep_terminal import print_sweep
from selfcontrast.report.sweep_words import sentence
from selfcontrast.results import Result

Make = Callable[..., Result]
Write = Callable[[Path, Result], None]


def test_numbers_of_several_seeds_are_means_with_t_intervals(make: Make, write: Write, tmp_path: Path) -> None:
    for seed, policy in ((1, 0.7), (2, 0.8), (3, 0.6)):
        write(tmp_path / str(seed), make(policy=policy, seed=seed))
    sweep = read_sweep([tmp_path])
    [point] = sweep.of("")
    assert (point.k, len(point.jobs)) == (4, 3)
    # The mean's error is 0.1/sqrt(3) = 0.05774. Student's t with 2 degrees of freedom is 4.3027, which gives 0.2484.
    assert numbers(point)[:2] == ["0.700 [0.452, 0.948]", "+0.100 [-0.148, +0.348]"]
    # t = 0.1 / 0.05774 = 1.7321, and P(|T| > t) = 1 - t / sqrt(2 + t^2) = 1 - 1.7321 / sqrt(5).
    assert point.p_value == pytest.approx(1 - math.sqrt(3 / 5))
    assert "No significant difference from SFT at K=4." in sentence(sweep)  # the interval over seeds agrees
    assert "Highest: K=4 with 0.700 [0.452, 0.948]" in sentence(sweep)
    write_sweep(sweep)
    assert "By K" in (tmp_path / "report.html").read_text()
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert [line.count("|") for line in lines] == [12] * 3 + [0] + [14] * 5  # a table by K, then a table of all jobs


def test_intervals_over_seeds_stay_in_the_range_of_scores(make: Make, write: Write, tmp_path: Path) -> None:
    """The mean is 0.95 and the half-width 4.3027 * 0.05 / sqrt(3) = 0.124, so the upper bound would be above 1."""
    for seed, policy in ((1, 0.9), (2, 0.95), (3, 1.0)):
        write(tmp_path / str(seed), make(policy=policy, seed=seed))
    assert numbers(read_sweep([tmp_path]).points[0])[0] == "0.950 [0.826, 1.000]"


def test_numbers_show_the_cost_of_a_point(make: Make, write: Write, tmp_path: Path) -> None:
    """Each job counts 225 s of a cached sft, 3 s of filter and 61 s of align. The jobs read 1.2 M and 2.4 M tokens."""
    write(tmp_path / "1", make(seed=1, tokens=1_200_000))
    write(tmp_path / "2", make(seed=2, tokens=2_400_000))
    sweep = read_sweep([tmp_path])
    assert numbers(sweep.points[0])[-3:] == ["1 min 01 s", "1.80 M", "4 min 49 s"]
    write_sweep(sweep)
    table = pd.read_csv(tmp_path / "results.csv")
    assert table["align_tokens"].tolist() == [1_200_000, 2_400_000]
    assert table["sampled_tokens"].isna().all()  # no stage of these jobs sampled candidates
    assert table["seconds_own"].tolist() == [64, 64]


def test_job_without_a_policy_is_compared_with_nothing(make: Make, write: Write, tmp_path: Path) -> None:
    """Jobs that only fine-tune have the fine-tuned model's row and no comparison, also with two seeds."""
    for seed in (1, 2):
        full = make(seed=seed, config={"label": "none"})
        rows = [row for row in full.comparison["rows"] if row["system"] == "SFT"]
        stages = [stage for stage in full.stages if stage["name"] == "sft"]
        sft_only = replace(
            full, comparison={**full.comparison, "rows": rows}, stages=stages, histories={}, similarities={}
        )
        write(tmp_path / f"alone{seed}", sft_only)
    write(tmp_path / "policy", make(config={"label": "Self-Contrast"}))
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    print_sweep(sweep)
    by_name = {job.folder: job for job in sweep.jobs}
    first, second = by_name["alone1"], by_name["alone2"]
    assert numbers(Point([first], first.p_holm))[:5] == ["0.600 [0.550, 0.650]", "–", "–", "–", "–"]
    assert numbers(Point([first, second], math.nan))[:4] == ["0.600 [–]", "–", "–", "–"]  # both seeds have one score
    assert {point.variant: point.outcome for point in sweep.points} == {"Self-Contrast": "better", "none": "alone"}
    assert by_name["policy"].p_holm == 0.002  # one test, not three
    assert pd.read_csv(tmp_path / "results.csv").set_index("job")["difference"].isna().to_dict() == {
        "alone1": True,
        "alone2": True,
        "policy": False,
    }
