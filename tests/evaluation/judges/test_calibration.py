"""Agreement with gold verdicts, computed by hand."""

import pytest

from selfcontrast.evaluation.judges.calibration import agreement

OPTIONS = {"confidence": 0.95, "n_bootstrap": 200, "seed": 0}


def test_agreement_accuracy_position_and_length() -> None:
    """Accuracy: right, wrong, half (the verdict flips with the order), right (a tie, as in gold): 2.5 of 4.

    Length: (1-1)·1, (0-1)·(-1) = 1, (0.5-0)·1 = 0.5, and none for equal lengths: 1.5 of 3.
    """
    result = agreement([1, 1, 0, 0.5], ([1, 0, 1, 0.5], [1, 0, 0, 0.5]), [5, -2, 1, 0], list("abcd"), **OPTIONS)
    assert result.accuracy.estimate == pytest.approx(2.5 / 4)
    assert result.length is not None
    assert result.length.estimate == pytest.approx(1.5 / 3)
    assert result.position.flip_rate.estimate == pytest.approx(1 / 4)


def test_agreement_equal_lengths_have_no_length_bias() -> None:
    assert agreement([1, 0], ([1, 0], [1, 0]), [0, 0], ["a", "b"], **OPTIONS).length is None
