import math

import pytest

from selfcontrast.report import text


@pytest.mark.parametrize(
    ("value", "signed", "expected"),
    [(0.7814, False, "0.781"), (0.04, True, "+0.040"), (-0.04, True, "-0.040"), (-0.00001, True, "0.000"),
     (-0.00001, False, "0.000"), (-10.0, False, "-10.000"), (math.nan, False, "–"), (None, False, "–")],
)  # fmt: skip
def test_number_has_three_decimals_and_a_sign_on_request(value: float | None, signed: bool, expected: str) -> None:
    assert text.number(value, signed=signed) == expected


def test_interval_with_unknown_bounds_shows_a_dash() -> None:
    assert text.interval({"estimate": 0.5, "low": 0.4, "high": 0.6}) == "0.500 [0.400, 0.600]"
    assert text.interval({"estimate": 0.5, "low": math.nan, "high": math.nan}) == "0.500 [–]"
    assert text.interval(None) == "–"


@pytest.mark.parametrize(("p", "cell", "equation"), [(0.0002, "<0.001", "p < 0.001"), (0.0321, "0.032", "p = 0.032")])
def test_p_value_has_three_decimals_or_an_upper_bound(p: float, cell: str, equation: str) -> None:
    assert (text.p_value(p), text.p_equals(p)) == (cell, equation)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.34, "0.3 s"),
        (9.97, "10 s"),
        (59.7, "1 min 00 s"),
        (225, "3 min 45 s"),
        (7500, "2 h 05 min"),
        (math.nan, "–"),
    ],
)
def test_duration_uses_seconds_minutes_or_hours(seconds: float, expected: str) -> None:
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(950, "950"), (1000, "1.00 k"), (12_345, "12.3 k"), (123_456, "123 k"), (4.56e6, "4.56 M"), (1.2e9, "1.20 G")],
)
def test_large_has_three_digits_and_a_suffix(value: float, expected: str) -> None:
    assert text.large(value) == expected
    assert text.large(math.nan) == "–"
