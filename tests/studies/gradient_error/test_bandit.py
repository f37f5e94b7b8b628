"""Compare the bandit's formulas with the real objective's autograd and with enumeration of every draw."""

import re
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcontrast.errors import UserError
from studies.gradient_error.bandit import Bandit, BanditSettings
from tiny import self_contrast

SETTINGS = BanditSettings(
    responses=8, good=3, reference_good=0.25, moved=0.7, beta=0.5, positives=[1], seed=3, replicates=4000
)
SMALL = Bandit(
    logits=np.array([0.3, -1.0, 0.5]),
    reference=np.array([0.5, 0.2, 0.3]),
    targets=np.array([0.6, 0.4, 0.0]),
    negatives=np.array([0.1, 0.3, 0.6]),
    beta=0.8,
)


def autograd_gradient(bandit: Bandit, target: int, negatives: tuple[int, ...]) -> np.ndarray:
    """Return the gradient of the real objective for one target and these negatives."""
    objective = self_contrast(bandit.beta)
    theta = torch.tensor(bandit.logits, requires_grad=True)
    chosen = [target, *negatives]
    policy = theta.log_softmax(-1)[chosen][None]
    reference = torch.tensor(bandit.reference).log()[chosen][None]
    mask = torch.ones(1, len(negatives), dtype=torch.bool)
    loss = objective(policy, reference, torch.ones(1, len(chosen)), mask).loss.sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    return gradient.numpy()


def test_gradients_match_autograd_of_the_objective() -> None:
    table = SETTINGS.build()
    for a, b in product(range(8), range(8)):
        np.testing.assert_allclose(table.gradients[a, b], autograd_gradient(table, a, (b,)), atol=1e-12)


def enumerate_error(bandit: Bandit, positives: int, negatives: int, crossed: bool) -> float:
    """Return E ||estimate - G||^2 by enumeration of every draw."""
    size, total = len(bandit.logits), 0.0
    shape = negatives if crossed else positives * negatives
    for targets in product(range(size), repeat=positives):
        for drawn in product(range(size), repeat=shape):
            probability = np.prod(bandit.targets[list(targets)]) * np.prod(bandit.negatives[list(drawn)])
            if probability == 0:
                continue
            groups = [drawn if crossed else drawn[i * negatives : (i + 1) * negatives] for i in range(positives)]
            estimate = np.mean([autograd_gradient(bandit, a, b) for a, b in zip(targets, groups, strict=True)], axis=0)
            total += probability * np.square(estimate - bandit.gradient).sum()
    return total


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_error_matches_enumeration(positives: int, negatives: int) -> None:
    parts = SMALL.parts
    assert parts.crossed(positives, negatives) == pytest.approx(
        enumerate_error(SMALL, positives, negatives, crossed=True)
    )
    nested = parts.nested.error(positives, negatives)
    assert nested == pytest.approx(enumerate_error(SMALL, positives, negatives, crossed=False))


@pytest.mark.parametrize("crossed", [True, False])
def test_simulation_matches_the_formula(crossed: bool) -> None:
    bandit = SETTINGS.build()
    drawn = bandit.simulate(positives=3, negatives=4, replicates=4000, seed=1, crossed=crossed)
    squared = np.square(drawn - bandit.gradient).sum(axis=1)
    expected = bandit.parts.crossed(3, 4) if crossed else bandit.parts.nested.error(3, 4)
    assert abs(squared.mean() - expected) < 4 * squared.std() / np.sqrt(len(squared))
    error = drawn.std(axis=0).max() / np.sqrt(len(drawn))
    assert np.abs(drawn.mean(axis=0) - bandit.gradient).max() < 5 * error  # unbiased


@given(moved=st.floats(0, 2), good=st.floats(0.05, 0.95), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_parts_add_up_and_are_not_negative(moved: float, good: float, seed: int) -> None:
    bandit = BanditSettings(6, 2, good, moved, 0.3, [1], seed, 2).build()
    parts, g = bandit.parts, bandit.gradients
    weights = np.outer(bandit.targets, bandit.negatives)
    total = (weights * np.square(g).sum(axis=-1)).sum() - parts.squared
    assert parts.target + parts.negative + parts.both == pytest.approx(total)
    assert min(parts.target, parts.negative) >= 0
    assert parts.both >= -1e-12
    assert bandit.reference[:2].sum() == pytest.approx(good)


def test_parts_at_the_start_of_training_have_no_interaction() -> None:
    """Every margin is 0, so g is -beta/2 (e_a - e_b), a sum without an interaction of target and negative."""
    bandit = BanditSettings(6, 2, 0.3, 0.0, 0.4, [1], 1, 2).build()
    parts = bandit.parts
    spread = 1 - (bandit.negatives**2).sum()  # tr Var of e_b
    assert parts.negative == pytest.approx(0.2**2 * spread)
    assert parts.target == pytest.approx(0.2**2 * (1 - 1 / 2))
    assert parts.both == pytest.approx(0, abs=1e-12)


def test_pairs_per_target_gives_the_error_of_unlimited_negatives() -> None:
    parts = SMALL.parts
    pairs = 5 * parts.pairs_per_target
    assert parts.nested.error(pairs, 1) == pytest.approx(parts.crossed(5, 1e15))


def test_bias_of_false_negatives_shrinks_with_a_filter() -> None:
    bandit = SETTINGS.build()
    good = np.arange(8) < 3
    ideal = bandit.filtered(good, 0.0)
    assert ideal.negatives[:3].sum() == 0
    # The gradient of a mixture is the mixture of gradients, so the bias is linear in the fraction of good negatives.
    fraction = bandit.negatives[:3].sum()
    only_good = Bandit(bandit.logits, bandit.reference, bandit.targets, bandit.negatives * good / fraction, bandit.beta)
    mixed = (1 - fraction) * ideal.gradient + fraction * only_good.gradient
    np.testing.assert_allclose(bandit.gradient, mixed, atol=1e-12)
    biases = [np.linalg.norm(bandit.filtered(good, kept).gradient - ideal.gradient) for kept in (1.0, 0.5, 0.0)]
    assert biases == sorted(biases, reverse=True)
    assert biases[-1] == 0


@pytest.mark.parametrize(
    ("key", "value"), [("good", 7), ("good", 0), ("reference_good", 1.0), ("positives", [0]), ("replicates", 1)]
)
def test_settings_out_of_range_raise_with_their_key(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^theory\.bandit\.{key}(\[0\])?=" + re.escape(str(value).strip("[]"))):
        BanditSettings(**{**vars(SETTINGS), key: value})
