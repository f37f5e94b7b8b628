"""Check the agreement with gold verdicts against numbers computed by hand."""

import pytest

from selfcontrast.evaluation.judges.calibration import agreement

OPTIONS = {"confidence": 0.95, "n_bootstrap": 200, "seed": 0}


def test_agreement_of_four_pairs_equals_numbers_by_hand() -> None:
    """The judge is right, wrong, half right (the verdict flips with the order) and right (a tie, as in gold): 2.5 / 4.

    The length bias is the mean of (outcome - gold)·sign(longer) over the three pairs of unequal length:
    ((1-1)·1 + (0-1)·(-1) + (0.5-0)·1) / 3 = 1.5 / 3.
    """
    result = agreement([1, 1, 0, 0.5], ([1, 0, 1, 0.5], [1, 0, 0, 0.5]), [5, -2, 1, 0], list("abcd"), **OPTIONS)
    assert result.accuracy.estimate == pytest.approx(2.5 / 4)
    assert result.length is not None
    assert result.length.estimate == pytest.approx(1.5 / 3)
    assert result.position.flip_rate.estimate == pytest.approx(1 / 4)


def test_agreement_equal_lengths_have_no_length_bias() -> None:
    assert agreement([1, 0], ([1, 0], [1, 0]), [0, 0], ["a", "b"], **OPTIONS).length is None
