"""Test likelihood displacement: its mean over the last steps and its significance."""

import math

import pytest

from selfcontrast.training.displacement import Displacement


def displacement(*changes: float) -> Displacement:
    return Displacement.of([{"step": i, "chosen_log_prob_change": c} for i, c in enumerate(changes)])


def test_displacement_uses_last_tenth_of_steps() -> None:
    assert displacement(*[-100.0] * 90, *[1.0, 2.0] * 5).change == pytest.approx(1.5)
    assert displacement(*[5.0] * 10, -1, -2, -3, -4, -5).change == -3  # at least five steps


def test_displacement_two_standard_errors_below_zero_is_significant() -> None:
    # Ten values, -1 and -3 alternately, have a standard deviation of sqrt(10/9). Their mean's standard error is 1/3.
    assert displacement(*[5.0] * 90, *[-1.0, -3.0] * 5) == Displacement(pytest.approx(-2), True)
    shift = 2 - 2 * math.sqrt(10 / 9) / math.sqrt(10)
    assert displacement(*[0.0] * 90, *[-1.0 + shift - 0.001, -3.0 + shift - 0.001] * 5).significant
    assert not displacement(*[0.0] * 90, *[-1.0 + shift + 0.001, -3.0 + shift + 0.001] * 5).significant


def test_displacement_rise_or_single_step_is_not_significant() -> None:
    assert not displacement(*[1.0] * 20).significant
    assert displacement(-7.0) == Displacement(-7.0, False)


def test_displacement_validation_records_are_ignored() -> None:
    assert Displacement.of([{"step": 1, "chosen_log_prob_change": -1.0}, {"step": 1, "val_loss": 3.0}]).change == -1
