"""The error of a gradient estimated from n prompts with K negatives each: its parts, and the gain from larger n or K.

With g_ij the gradient of the loss of prompt i (with its one target) against negative j, the estimate is
(1/n) sum_i (1/K) sum_j g_ij, and G its expectation. By the law of total variance

    E ||estimate - G||^2 = (A + B / K) / n,     A = E ||E[g_ij | i] - G||^2,     B = E ||g_ij - E[g_ij | i]||^2.

A is what prompts and their targets vary by, and no number of negatives makes it smaller; B is what a prompt's negatives
vary by. Both are estimated without bias by the one-way analysis of variance (Searle, Casella and McCulloch 1992, 3.2).
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
        squared: ||G||^2. Estimated, it can be below 0 where noise drowns G.
        between: A, of the prompts' own gradients. Likewise.
        within: B, of a prompt's negatives.
    """

    squared: float
    between: float
    within: float

    def error(self, prompts: float, negatives: float) -> float:
        """Return E ||estimate - G||^2 for n prompts with K negatives each."""
        return (self.between + self.within / negatives) / prompts

    def prompts_needed(self, negatives: float) -> float:
        """Return the number of prompts at which the error equals ||G||^2: with fewer, an estimate is mostly noise.

        Infinite if G cannot be told apart from 0.
        """
        return self.error(1, negatives) / self.squared if self.squared > 0 else math.inf

    @property
    def ratio(self) -> float:
        """B / A. Of the error with K = 1, unlimited negatives would remove the fraction B / (A + B)."""
        return self.within / self.between if self.between > 0 else math.inf

    def worth(self, negatives: float) -> float:
        """Return the factor of prompts by which one negative reaches the error of K negatives: (A + B) / (A + B/K).

        At most 1 + B / A, however large K is.
        """
        between = max(self.between, 0.0)
        return (between + self.within) / (between + self.within / negatives)

    def best_negatives(self, prompt_tokens: float, response_tokens: float) -> float:
        """Return the K of least error for a given number of tokens: sqrt(B/A (P + R)/R).

        A group of P + (K+1) R tokens has the error A + B/K; the product of both is least there.
        """
        return math.sqrt(self.ratio * (prompt_tokens + response_tokens) / response_tokens)


def components(gradients: Floats) -> Components:
    """Unbiased estimates from the gradients [prompts, negatives, d] of independent prompts with M negatives each.

    Raises ValueError for fewer than two prompts or negatives.
    """
    return _estimate(*_sums(gradients), gradients.shape[1])


def leave_one_out(gradients: Floats) -> list[Components]:
    """The estimates with each prompt left out in turn, from which the standard errors are computed."""
    products, within = _sums(gradients)
    rest = [np.delete(np.arange(len(within)), i) for i in range(len(within))]
    return [_estimate(products[np.ix_(own, own)], within[own], gradients.shape[1]) for own in rest]


def _sums(gradients: Floats) -> tuple[Floats, Floats]:
    """Inner products of the prompts' means, [N, N], and each prompt's sum of squares around its mean, [N]."""
    prompts, negatives, _ = gradients.shape
    if min(prompts, negatives) < 2:
        raise ValueError(f"{prompts} prompts with {negatives} negatives: two of each are needed")
    means = gradients.mean(axis=1)
    within = np.array([np.square(own - mean).sum() for own, mean in zip(gradients, means, strict=True)])
    return np.asarray(means @ means.T), within


def _estimate(products: Floats, within: Floats, negatives: int) -> Components:
    prompts = len(within)
    variance = float(within.sum()) / (prompts * (negatives - 1))
    squared = float(products.sum() - np.trace(products)) / (prompts * (prompts - 1))
    of_means = float(np.trace(products)) / prompts - squared  # A + B/M: E ||mean_i||^2 is ||G||^2 + A + B/M
    return Components(squared, of_means - variance / negatives, variance)


def inner(a: Floats, b: Floats) -> float:
    """<E a_i, E b_i> from independent pairs (a_i, b_i), [n, d] each, without the bias of an average's own noise.

    The mean of <a_i, b_k> over i != k: what one prompt's noise has in common with itself is left out.
    """
    n = len(a)
    return float((a.sum(axis=0) @ b.sum(axis=0) - (a * b).sum()) / (n * (n - 1)))


def slope(step: Floats, uphill: Floats) -> float:
    """Return the component of the mean step along the mean of `uphill`, [n, d] each, estimated by `inner`.

    NaN if the direction is lost in noise.
    """
    squared = inner(uphill, uphill)
    return inner(step, uphill) / math.sqrt(squared) if squared > 0 else math.nan


def jackknife(estimate: float, without: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of an estimate from its values without each of n prompts, [n]; Student's t with n - 1."""
    n = len(without)
    error = math.sqrt((n - 1) / n * float(np.square(without - without.mean()).sum()))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return estimate - half, estimate + half


def pair_gradients(gradients: Floats, log_probs: Floats, reference: Floats, beta: float) -> Floats:
    """The gradient of -log sigmoid(r(y+) - r(y_j)) for every negative, [n, M, d].

    Args:
        gradients: gradients of the responses' log-probabilities, target first, [n, 1 + M, d].
        log_probs: log-probabilities of the policy, [n, 1 + M].
        reference: the reference's, [n, 1 + M].
        beta: r(y) = beta (log p_policy(y|x) - log p_reference(y|x)).
    """
    rewards = beta * (log_probs - reference)
    weights = -beta / (1 + np.exp(rewards[:, :1] - rewards[:, 1:]))
    return np.asarray(weights[:, :, None] * (gradients[:, :1] - gradients[:, 1:]))
