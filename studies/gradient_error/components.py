"""Decompose the error of a gradient that is estimated from n prompts with K negatives each.

Let g_ij be the gradient of the loss of prompt i, with its one target, against negative j. The estimate is
(1/n) sum_i (1/K) sum_j g_ij, and G is its expectation. By the law of total variance

    E ||estimate - G||^2 = (A + B / K) / n,     A = E ||E[g_ij | i] - G||^2,     B = E ||g_ij - E[g_ij | i]||^2.

A is the variance between prompts and their targets; no number of negatives reduces it. B is the variance between the
negatives of a prompt. The one-way analysis of variance estimates both without bias (Searle, Casella and McCulloch 1992,
3.2).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """The parts of the error.

    Attributes:
        squared: ||G||^2. An estimate can be below 0 if the noise exceeds G.
        between: A, the variance between prompts. Its estimate can be below 0, too.
        within: B, the variance between a prompt's negatives.
    """

    squared: float
    between: float
    within: float

    def error(self, prompts: float, negatives: float) -> float:
        """Return E ||estimate - G||^2 of n prompts with K negatives each."""
        return (self.between + self.within / negatives) / prompts

    def prompts_needed(self, negatives: float) -> float:
        """Return the number of prompts at which the error equals ||G||^2. With fewer, an estimate is mostly noise.

        The number is infinite if `squared`, the estimate of ||G||^2, is not positive.
        """
        return self.error(1, negatives) / self.squared if self.squared > 0 else math.inf

    @property
    def ratio(self) -> float:
        """Return B / A. Unlimited negatives remove B / (A + B) of the error at K = 1."""
        return self.within / self.between if self.between > 0 else math.inf

    def worth(self, negatives: float) -> float:
        """Return how many prompts with one negative have the same error as one prompt with K: (A + B) / (A + B/K).

        The number is at most 1 + B / A for any K.
        """
        between = max(self.between, 0.0)
        return (between + self.within) / (between + self.within / negatives)

    def best_negatives(self, prompt_tokens: float, response_tokens: float) -> float:
        """Return the K with the least error for a given number of tokens: sqrt(B/A (P + R)/R).

        A group of P + (K+1) R tokens has the error A + B/K. The returned K minimises the product of tokens and error.
        """
        return math.sqrt(self.ratio * (prompt_tokens + response_tokens) / response_tokens)


def components(gradients: Floats) -> Components:
    """Estimate the parts without bias from gradients [prompts, negatives, d] of independent prompts.

    Raises:
        ValueError: for fewer than two prompts or negatives.
    """
    return _estimate(*_sums(gradients), gradients.shape[1])


def leave_one_out(gradients: Floats) -> list[Components]:
    """Return the estimates with each prompt left out in turn, for the jackknife."""
    products, within = _sums(gradients)
    rest = [np.delete(np.arange(len(within)), i) for i in range(len(within))]
    return [_estimate(products[np.ix_(rows, rows)], within[rows], gradients.shape[1]) for rows in rest]


def _sums(gradients: Floats) -> tuple[Floats, Floats]:
    """Return inner products of the prompts' means, [N, N], and each prompt's sum of squares around its mean, [N]."""
    prompts, negatives, _ = gradients.shape
    if min(prompts, negatives) < 2:
        raise ValueError(f"{prompts} prompts with {negatives} negatives are too few. Give at least two of each.")
    means = gradients.mean(axis=1)
    within = np.array([np.square(rows - mean).sum() for rows, mean in zip(gradients, means, strict=True)])
    return np.asarray(means @ means.T), within


def _estimate(products: Floats, within: Floats, negatives: int) -> Components:
    prompts = len(within)
    variance = float(within.sum()) / (prompts * (negatives - 1))
    squared = float(products.sum() - np.trace(products)) / (prompts * (prompts - 1))
    variance_of_means = float(np.trace(products)) / prompts - squared  # A + B/M: E ||mean_i||^2 is ||G||^2 + A + B/M
    return Components(squared, variance_of_means - variance / negatives, variance)


def inner(a: Floats, b: Floats) -> float:
    """Estimate <E a_i, E b_i> from independent pairs (a_i, b_i), [n, d] each, without bias.

    It is the mean of <a_i, b_k> over i != k. Leaving out i = k removes the product of a prompt's noise with itself.
    """
    n = len(a)
    return float((a.sum(axis=0) @ b.sum(axis=0) - (a * b).sum()) / (n * (n - 1)))


def slope(step: Floats, uphill: Floats) -> float:
    """Return the mean step's component along the mean of `uphill`, [n, d] each, by `inner`.

    NaN if the estimated squared length of that mean is not positive.
    """
    squared = inner(uphill, uphill)
    return inner(step, uphill) / math.sqrt(squared) if squared > 0 else math.nan


def jackknife(estimate: float, without: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Return an estimate's interval from its leave-one-out values, [n]. Student's t has n - 1 degrees of freedom."""
    n = len(without)
    error = math.sqrt((n - 1) / n * float(np.square(without - without.mean()).sum()))
    half_width = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return estimate - half_width, estimate + half_width


def pair_gradients(gradients: Floats, log_probs: Floats, reference: Floats, beta: float) -> Floats:
    """Return the gradient of -log sigmoid(r(y+) - r(y_j)) for every negative, [n, M, d].

    Args:
        gradients: gradients of the responses' log-probabilities, target first, [n, 1 + M, d].
        log_probs: the policy's log-probabilities, [n, 1 + M].
        reference: the reference's log-probabilities, [n, 1 + M].
        beta: factor of the reward r(y) = beta (log p_policy(y|x) - log p_reference(y|x)).
    """
    rewards = beta * (log_probs - reference)
    weights = -beta / (1 + np.exp(rewards[:, :1] - rewards[:, 1:]))
    return np.asarray(weights[:, :, None] * (gradients[:, :1] - gradients[:, 1:]))
