from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

from selfcontrast.evaluation.statistics import holm


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .04, times 3, 2, 1: .03 .04 .04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    with patch("gc.collect"):  # which theirs calls each time: a second, where torch is in memory
        theirs = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(theirs)


def test_holm_of_nothing() -> None:
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("p_value", [-0.1, 1.1, np.nan])
def test_holm_refuses_what_is_no_p_value(p_value: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm([0.5, p_value])
