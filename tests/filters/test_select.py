"""Test that the filter's settings are checked before any compute."""

from typing import Any

import pytest
from pools import filter_settings

from selfcontrast.errors import UserError
from selfcontrast.filters.diverse import LogDeterminant
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import (
    Everything,
    LeastConsistent,
    LeastLikely,
    LeastSimilar,
    LowestRanked,
    LowestScored,
    NearestBelowMean,
)


@pytest.mark.parametrize(
    ("settings", "negatives", "samples", "line"),
    [
        (filter_settings(4), 5, 32, r"negatives=5 .*filter\.max_negatives=4"),
        (
            filter_settings(16, selector=LeastSimilar(0.25, "distinct")),
            16,
            32,
            r"max_negatives=16 .* 8 of generator\.samples=32",
        ),
        (filter_settings(16, selector=LeastSimilar(0.25, "distinct")), 1, 32, r"max_negatives=16 "),
        (filter_settings(33, selector=Everything()), 1, 32, r"max_negatives=33 "),
        (filter_settings(33, "refill"), 1, 32, r"max_negatives=33 "),
        (
            filter_settings(4, selector=LowestScored(1.0, 1.0)),
            4,
            32,
            r"filter\.selector=LowestScored needs scores.* \+reward_model@filter.reward_model=",
        ),
        (
            filter_settings(4, selector=NearestBelowMean(2.0)),
            4,
            32,
            r"filter\.selector=NearestBelowMean needs scores.* \+reward_model@filter.reward_model=",
        ),
        (
            filter_settings(4, selector=LeastLikely(0.5, "distinct")),
            4,
            32,
            r"selector=LeastLikely .*log-probabilities.* generator=hf",
        ),
        (
            filter_settings(4, selector=LowestRanked(0.5, "distinct", ["similarity", "log_prob"])),
            4,
            32,
            r"selector=LowestRanked .*log-probabilities",
        ),
        (filter_settings(16, selector=LeastConsistent(0.25, "samples")), 4, 32, r"max_negatives=16 .* 8 of "),
        (filter_settings(16, selector=LogDeterminant(0.25, 0.1)), 4, 32, r"max_negatives=16 .* 8 of "),
    ],
)
def test_filter_check_of_impossible_settings_raises(settings: Filter, negatives: int, samples: int, line: str) -> None:
    with pytest.raises(UserError, match=line):
        settings.check(negatives, samples, verified=False, log_probs=False)


def test_filter_check_of_possible_settings_passes() -> None:
    filter_settings(16).check(16, 32, verified=False, log_probs=False)
    filter_settings(8, selector=LeastSimilar(0.25, "distinct")).check(1, 32, verified=False, log_probs=False)
    filter_settings(16, "refill", LeastSimilar(0.25, "distinct")).check(
        16, 32, verified=False, log_probs=False
    )  # refill may use rejected candidates
    filter_settings(32, selector=Everything()).check(32, 32, verified=False, log_probs=False)
    filter_settings(4, selector=LowestScored(1.0, 1.0)).check(4, 32, verified=True, log_probs=False)
    filter_settings(4, selector=LeastLikely(0.5, "distinct")).check(4, 32, verified=False, log_probs=True)
    filter_settings(4, selector=LowestRanked(0.5, "distinct", ["similarity", "consensus"])).check(
        4, 32, False, log_probs=False
    )


@pytest.mark.parametrize("make", [lambda: filter_settings(0), lambda: filter_settings(4, "ignore")])
def test_filter_invalid_settings_raise(make: Any) -> None:
    with pytest.raises(UserError, match=r"filter\."):
        make()
