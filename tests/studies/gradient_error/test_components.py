"""Compare estimates of the error's parts with values by hand and with enumeration."""

import math
from itertools import product

import numpy as np
import pytest

from studies.gradient_error.components import Components, components, inner, jackknife, leave_one_out, slope


def test_components_equal_values_by_hand() -> None:
    """Two prompts have two negatives each. Their gradients have one dimension: 0 and 2, 4 and 10."""
    parts = components(np.array([[[0.0], [2.0]], [[4.0], [10.0]]]))
    # within = ((0-1)^2 + (2-1)^2 + (4-7)^2 + (10-7)^2) / 2 = 10.
    # The prompts' means are 1 and 7. Their variance is 18 = between + within / 2.
    assert parts.within == pytest.approx(10)
    assert parts.between == pytest.approx(13)
    assert parts.squared == pytest.approx(1 * 7)  # the product of the two means


def test_components_are_unbiased_over_every_sample() -> None:
    """There are two equally likely prompts. A negative's gradient is 0 or 1 for the first, -2 or 4 for the second."""
    values = {0: (0.0, 1.0), 1: (-2.0, 4.0)}
    outcomes = [(i, v) for i in values for v in product(values[i], repeat=2)]  # two negatives of one prompt
    estimates = [
        components(np.array([[[x] for x in a], [[x] for x in b]])) for (_, a), (_, b) in product(outcomes, outcomes)
    ]
    # The prompts' means are 0.5 and 1, so G = 0.75 and between = 0.25^2. Their variances are 0.25 and 9, so
    # within = 4.625.
    assert np.mean([c.squared for c in estimates]) == pytest.approx(0.75**2)
    assert np.mean([c.between for c in estimates]) == pytest.approx(0.25**2)
    assert np.mean([c.within for c in estimates]) == pytest.approx(4.625)


def test_error_matches_the_mean_over_every_estimate() -> None:
    values = {0: (0.0, 1.0), 1: (-2.0, 4.0)}
    outcomes = [np.mean(v) for i in values for v in product(values[i], repeat=2)]
    errors = [((a + b) / 2 - 0.75) ** 2 for a, b in product(outcomes, outcomes)]
    assert Components(0.75**2, 0.25**2, 4.625).error(prompts=2, negatives=2) == pytest.approx(np.mean(errors))


def test_worth_and_prompts_needed_equal_values_by_hand() -> None:
    parts = Components(squared=2.0, between=3.0, within=6.0)
    assert parts.prompts_needed(2) == pytest.approx((3 + 6 / 2) / 2)
    assert parts.error(parts.prompts_needed(2), 2) == pytest.approx(parts.squared)
    assert parts.worth(1) == 1
    assert parts.worth(2) == pytest.approx(9 / 6)
    assert parts.worth(1e12) == pytest.approx(1 + parts.ratio) == pytest.approx(3)
    # worth(2) times as many prompts, with one negative each, give the error of prompts with two negatives each.
    assert parts.error(10 * parts.worth(2), 1) == pytest.approx(parts.error(10, 2))


def test_best_negatives_minimise_the_error_per_token() -> None:
    parts = Components(squared=1.0, between=2.0, within=16.0)

    def cost(k: int) -> float:
        return parts.error(1 / (30 + (k + 1) * 10), k)

    best = parts.best_negatives(prompt_tokens=30, response_tokens=10)
    assert best == pytest.approx(math.sqrt(8 * 4))
    assert min(range(1, 50), key=cost) == round(best)


def test_worth_without_variance_between_prompts_is_unbounded() -> None:
    parts = Components(squared=1.0, between=-0.1, within=1.0)  # an estimate of `between` can be below 0
    assert parts.worth(8) == pytest.approx(8)
    assert parts.ratio == math.inf
    assert Components(-0.5, 1.0, 1.0).prompts_needed(1) == math.inf


def test_inner_and_slope_leave_out_products_within_a_prompt() -> None:
    a = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    b = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    pairs = [a[i] @ b[k] for i in range(3) for k in range(3) if i != k]
    assert inner(a, b) == pytest.approx(np.mean(pairs))
    same = np.tile([3.0, 4.0], (5, 1))
    assert slope(same, 2 * same) == pytest.approx(5)
    assert slope(np.tile([4.0, -3.0], (5, 1)), same) == pytest.approx(0)
    assert math.isnan(slope(np.array([[1.0], [1.0]]), np.array([[1.0], [-1.0]])))


def test_jackknife_of_a_mean_equals_student_t_interval() -> None:
    x = np.array([1.0, 2.0, 4.0, 9.0])
    without = np.array([np.delete(x, i).mean() for i in range(4)])
    half_width = 3.182446305284263 * x.std(ddof=1) / 2  # t of 3 degrees of freedom, times s / sqrt(4)
    assert jackknife(x.mean(), without) == pytest.approx((4 - half_width, 4 + half_width))


def test_leave_one_out_equals_components_of_the_other_prompts() -> None:
    gradients = np.arange(12.0).reshape(3, 2, 2) ** 2
    parts, expected = leave_one_out(gradients)[1], components(gradients[[0, 2]])
    assert vars(parts) == pytest.approx(vars(expected))


def test_components_of_a_single_prompt_are_refused() -> None:
    with pytest.raises(ValueError, match="1 prompts with 4 negatives"):
        components(np.zeros((1, 4, 3)))
