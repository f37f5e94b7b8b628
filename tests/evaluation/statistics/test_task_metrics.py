"""Test the intervals of lm-eval's metrics."""

import math

import pytest
from scipy import stats

from selfcontrast.evaluation.statistics.task_metrics import metric_interval
from selfcontrast.report.page import lm_eval_rows


def test_metric_interval_of_perfect_accuracy_has_a_lower_bound_below_1() -> None:
    """At the lower bound 0.025^(1/20) = 0.8316, 20 right answers of 20 have a probability of 2.5%."""
    result = metric_interval({"acc": 1.0, "acc stderr": 0.0, "documents": 20}, "acc", 0.95)
    assert (result.low, result.high) == (pytest.approx(0.8316, abs=1e-4), 1.0)


def test_metric_interval_of_a_metric_other_than_accuracy_uses_students_t() -> None:
    """t with 24 degrees of freedom is 2.0639 at 97.5%."""
    result = metric_interval({"f1": 0.4, "f1 stderr": 0.05, "documents": 25}, "f1", 0.95)
    assert (result.low, result.high) == pytest.approx((0.4 - 2.0639 * 0.05, 0.4 + 2.0639 * 0.05), abs=1e-5)
    assert result.high - result.low == pytest.approx(2 * stats.t.ppf(0.975, 24) * 0.05)


@pytest.mark.parametrize(
    "metrics",
    [
        {"acc": 0.5, "documents": 9},  # as older versions wrote it
        {"f1": 0.5, "f1 stderr": 0.0, "documents": 9},
        {"f1": 0.5, "f1 stderr": math.nan, "documents": 9},
        {"acc": 1.0, "acc stderr": 0.0, "documents": 1},
    ],
)
def test_metric_interval_without_usable_standard_error_has_no_bounds(metrics: dict[str, float]) -> None:
    result = metric_interval(metrics, next(iter(metrics)), 0.95)
    assert math.isnan(result.low)
    assert math.isnan(result.high)


def test_lm_eval_rows_show_values_and_intervals() -> None:
    metrics = {"f1": 0.4, "f1 stderr": 0.05, "old": 0.25, "documents": 25}
    rows = lm_eval_rows({"SFT": {"task": metrics}, "other": {}}, 0.95)
    assert rows[:2] == [("task", "f1", ["0.400 [0.297, 0.503]", "–"]), ("task", "old", ["0.250", "–"])]
    assert [metric for _, metric, _ in rows] == ["f1", "old", "documents"]
