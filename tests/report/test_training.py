"""Check the numbers printed next to the training curves against numbers computed by hand."""

from selfcontrast.report.figures import by_rank
from selfcontrast.report.training import ends, mean_of, ranks, step_zero, throughput

RECORDS = [
    {"step": 1, "tokens_per_second": 100.0, "accuracy_rank_1": 0.0, "accuracy_rank_2": 1.0, "peak_memory_gib": 1.0},
    {"step": 2, "tokens_per_second": 900.0, "accuracy_rank_1": 0.5, "peak_memory_gib": 2.0},
    {"step": 2, "val_loss": 1.0},
    {"step": 3, "tokens_per_second": 300.0, "accuracy_rank_1": 1.0, "accuracy_rank_2": 0.5, "peak_memory_gib": 2.0},
]


def test_throughput_shows_medians_and_the_highest_peak() -> None:
    assert throughput(RECORDS) == "300 tokens/s, peak memory 2.0 GiB"
    assert throughput([]) == throughput([{"step": 1, "loss": 1.0}]) == ""


def test_mean_of_a_rank_uses_the_steps_that_have_it() -> None:
    assert ranks(RECORDS) == 2
    assert mean_of(RECORDS, "accuracy_rank_1") == 0.5
    assert mean_of(RECORDS, "accuracy_rank_2") == 0.75
    assert mean_of(RECORDS, "accuracy_rank_3") is None


def test_ends_are_the_first_and_the_last_tenth_of_the_steps() -> None:
    many = [{"step": float(i)} for i in range(25)]
    first, last = ends(many)
    assert [r["step"] for r in first] == [0, 1, 2]
    assert [r["step"] for r in last] == [22, 23, 24]


def test_by_rank_shows_the_first_and_the_last_steps() -> None:
    figure = by_rank(RECORDS)
    assert figure is not None
    accuracy, _ = figure.axes
    first, last, _ = accuracy.get_lines()
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([1, 2], [0.0, 1.0])
    assert list(last.get_ydata()) == [1.0, 0.5]
    assert by_rank([{"step": 1, "accuracy_rank_1": 1.0}]) is None  # one negative has no ranks


def test_step_zero_is_one_line() -> None:
    first = {"step": 1, "step0/loss": 0.69320, "step0/expected_loss": 0.693147, "step0/margin_std": 1.25e-7}
    assert step_zero([first, {"step": 2}]) == (
        "At step 0, where the policy is the reference, the loss was 0.6932 (with every margin at 0: 0.6931), and "
        "margins were 1.2e-07 away from 0."
    )
    assert step_zero(RECORDS) == ""
