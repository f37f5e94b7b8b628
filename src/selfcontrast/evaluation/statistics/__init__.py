"""Compute intervals and tests clustered by prompt, since observations of one prompt are not independent.

A *cluster* is the set of observations of one prompt. Functions take one cluster label per observation (numbers or
strings), and raise ValueError for empty input, unequal lengths, or a value that is not finite. Functions that draw at
random take a seed.
"""

from selfcontrast.evaluation.statistics.bootstrap import (
    Interval,
    mean_interval,
    paired_difference,
    rate_interval,
    standard_error,
    win_rate,
)
from selfcontrast.evaluation.statistics.crossed import CrossedMean, crossed_mean
from selfcontrast.evaluation.statistics.length_control import (
    Coefficients,
    ControlledRate,
    LengthControlledRate,
    length_controlled_difference,
    length_controlled_win_rate,
    win_rate_at_equal_length,
)
from selfcontrast.evaluation.statistics.length_within_prompts import (
    OutcomePairs,
    WithinPrompts,
    length_controlled_within_prompts,
)
from selfcontrast.evaluation.statistics.multiplicity import holm
from selfcontrast.evaluation.statistics.permutation import paired_permutation_test
from selfcontrast.evaluation.statistics.position import PositionBias, position_bias
from selfcontrast.evaluation.statistics.seeds import over_seeds, seeds_test

__all__ = [
    "Coefficients",
    "ControlledRate",
    "CrossedMean",
    "Interval",
    "LengthControlledRate",
    "OutcomePairs",
    "PositionBias",
    "WithinPrompts",
    "crossed_mean",
    "holm",
    "length_controlled_difference",
    "length_controlled_win_rate",
    "length_controlled_within_prompts",
    "mean_interval",
    "over_seeds",
    "paired_difference",
    "paired_permutation_test",
    "position_bias",
    "rate_interval",
    "seeds_test",
    "standard_error",
    "win_rate",
    "win_rate_at_equal_length",
]
