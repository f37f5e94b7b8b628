"""Agreement with gold, by hand."""

import pytest

from selfcontrast.evaluation.judges.calibration import agreement

OPTIONS = {"confidence": 0.95, "n_bootstrap": 200, "seed": 0}


def test_accuracy_position_and_length_by_hand() -> None:
    """Right, wrong, a tie that flips against a preference (1/2), a tie that is gold's too: 2.5 of 4.

    Length: (1-1)·1, (0-1)·(-1) = 1, (0.5-0)·1 = 0.5, none where both are as long: 1.5 of 3.
    """
    found = agreement([1, 1, 0, 0.5], ([1, 0, 1, 0.5], [1, 0, 0, 0.5]), [5, -2, 1, 0], list("abcd"), **OPTIONS)
    assert found.accuracy.estimate == pytest.approx(2.5 / 4)
    assert found.length is not None
    assert found.length.estimate == pytest.approx(1.5 / 3)
    assert found.position.flip_rate.estimate == pytest.approx(1 / 4)


def test_answers_of_one_length_tell_nothing_of_length() -> None:
    assert agreement([1, 0], ([1, 0], [1, 0]), [0, 0], ["a", "b"], **OPTIONS).length is None
