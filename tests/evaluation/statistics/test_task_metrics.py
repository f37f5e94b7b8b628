"""Intervals of lm-eval's metrics, from what it says of them."""

import math

import pytest
from scipy import stats

from selfcontrast.evaluation.statistics.task_metrics import metric_interval
from selfcontrast.report.page import lm_eval_rows


def test_all_right_is_not_certainty() -> None:
    """The rate at which 20 right answers have a probability of 2.5% is 0.025^(1/20) = 0.8316."""
    found = metric_interval({"acc": 1.0, "acc stderr": 0.0, "documents": 20}, "acc", 0.95)
    assert (found.low, found.high) == (pytest.approx(0.8316, abs=1e-4), 1.0)


def test_a_mean_of_other_numbers_has_students_t() -> None:
    """t of 24 degrees at 97.5% is 2.0639 (any table)."""
    found = metric_interval({"f1": 0.4, "f1 stderr": 0.05, "documents": 25}, "f1", 0.95)
    assert (found.low, found.high) == pytest.approx((0.4 - 2.0639 * 0.05, 0.4 + 2.0639 * 0.05), abs=1e-5)
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 24) * 0.05)


@pytest.mark.parametrize(
    "metrics",
    [
        {"acc": 0.5, "documents": 9},  # of an older version
        {"f1": 0.5, "f1 stderr": 0.0, "documents": 9},
        {"f1": 0.5, "f1 stderr": math.nan, "documents": 9},
        {"acc": 1.0, "acc stderr": 0.0, "documents": 1},
    ],
)
def test_what_is_not_known_has_no_bounds(metrics: dict[str, float]) -> None:
    found = metric_interval(metrics, next(iter(metrics)), 0.95)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_cells_of_a_report() -> None:
    metrics = {"f1": 0.4, "f1 stderr": 0.05, "old": 0.25, "documents": 25}
    rows = lm_eval_rows({"SFT": {"task": metrics}, "other": {}}, 0.95)
    assert rows[:2] == [("task", "f1", ["0.400 [0.297, 0.503]", "–"]), ("task", "old", ["0.250", "–"])]
    assert [metric for _, metric, _ in rows] == ["f1", "old", "documents"]
