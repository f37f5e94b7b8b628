"""Check what docs/theory.md says on the expected gradient of unfiltered negatives, by enumerating all outcomes."""

from itertools import product

import numpy as np
import pytest

from selfcontrast.filters.pool import distinct

TEXTS = ["target", "often", "seldom", "never twice"]
POLICY = np.array([0.2, 0.5, 0.25, 0.05])
SAMPLES = 4


def expected_step(keep_all: bool) -> np.ndarray:
    """Return the mean of -∇ log p(y) with respect to softmax logits, where y is one negative drawn per prompt.

    Prompts without a negative do not count.
    """
    total, weight = np.zeros(4), 0.0
    for drawn in product(range(4), repeat=SAMPLES):
        rows = range(SAMPLES) if keep_all else distinct(TEXTS[0], [TEXTS[i] for i in drawn])
        if rows:
            probability = POLICY[list(drawn)].prod()
            weight += probability
            total -= probability * np.mean([np.eye(4)[drawn[row]] - POLICY for row in rows], axis=0)
    return total / weight


def test_expected_step_of_plain_samples_is_zero() -> None:
    np.testing.assert_allclose(expected_step(keep_all=True), 0, atol=1e-12)


def test_expected_step_of_distinct_samples_raises_the_target() -> None:
    """Relative to its probability, a rare response is a negative more often than a frequent one."""
    step = expected_step(keep_all=False)
    assert step[0] == pytest.approx(POLICY[0])  # the target is never a negative, so the step is -(0 - p)
    often, seldom, rare = (POLICY - step)[1:] / POLICY[1:]  # p - step is the probability of being the negative
    assert 1.1 < often < seldom < rare
