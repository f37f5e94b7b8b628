from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

from selfcontrast.evaluation.statistics import holm


def test_holm_equals_numbers_by_hand() -> None:
    # The sorted p-values 0.01, 0.02, 0.04 times 3, 2, 1 are 0.03, 0.04, 0.04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    with patch("gc.collect"):  # statsmodels calls it each time, which takes a second with torch in memory
        expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_of_an_empty_list_is_empty() -> None:
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("p_value", [-0.1, 1.1, np.nan])
def test_holm_p_value_out_of_range_is_rejected(p_value: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm([0.5, p_value])
