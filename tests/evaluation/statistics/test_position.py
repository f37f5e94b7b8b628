import numpy as np
import pytest

from selfcontrast.evaluation.statistics import position_bias


def test_position_bias_of_four_pairs_equals_numbers_by_hand() -> None:
    """Judge four pairs in both orders: win and win, win and loss, tie and tie, win and tie.

    The verdicts of the second and fourth pair depend on the order. The first position gets (1 + 0) / 2 = 0.5 in the
    first pair, 1 in the second, 0.5 in the third, (1 + 0.5) / 2 in the fourth.
    """
    result = position_bias([1, 1, 0.5, 1], [1, 0, 0.5, 0.5], ["a", "b", "c", "d"])
    assert result.flip_rate.estimate == 0.5
    assert result.first_position_share.estimate == pytest.approx((0.5 + 1 + 0.5 + 0.75) / 4)
    assert result.flip_rate.clusters == 4


def test_position_bias_is_largest_for_a_judge_that_only_sees_positions() -> None:
    always_first = position_bias(np.ones(20), np.zeros(20), np.arange(20))
    assert (always_first.flip_rate.estimate, always_first.first_position_share.estimate) == (1, 1)
    always_second = position_bias(np.zeros(20), np.ones(20), np.arange(20))
    assert (always_second.flip_rate.estimate, always_second.first_position_share.estimate) == (1, 0)


def test_position_bias_is_zero_if_one_system_always_wins() -> None:
    result = position_bias(np.ones(20), np.ones(20), np.arange(20))
    assert (result.flip_rate.estimate, result.first_position_share.estimate) == (0, 0.5)


def test_position_bias_of_probabilities_counts_changes_of_the_winner() -> None:
    result = position_bias([0.9, 0.6], [0.6, 0.4], [0, 1])
    assert result.flip_rate.estimate == 0.5
    assert result.first_position_share.estimate == pytest.approx(((0.9 + 0.4) / 2 + (0.6 + 0.6) / 2) / 2)


def test_position_bias_unusable_input_is_rejected() -> None:
    with pytest.raises(ValueError, match="both orders"):
        position_bias([1, 0], [1], [0, 1])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        position_bias([1, 2], [1, 0], [0, 1])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        position_bias([1, float("nan")], [1, 0], [0, 1])
