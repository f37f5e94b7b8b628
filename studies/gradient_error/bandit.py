"""Compute the gradient's error exactly for a softmax policy over a finite set of responses.

The error is exact because every expectation is a finite sum.

The policy's log-probability of response a is theta_a minus the log of the sum of all exp(theta). The reward is
r(a) = beta (log p_theta(a) - log p_ref(a)). The loss of a target a and a negative b is -log sigmoid(r(a) - r(b)). Its
gradient in theta, from which the normalisers cancel, is

    g(a, b) = -beta sigmoid(r(b) - r(a)) (e_a - e_b),     e_a: the unit vector of response a.

Targets are drawn from `targets`, negatives from `negatives`.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit, log_softmax

from selfcontrast.constrained import Count, NonNegative, Positive, ProperFraction, Seed, check_numbers
from selfcontrast.errors import UserError
from studies.gradient_error.components import Components, Floats


@dataclass(frozen=True)
class BanditSettings:
    """Settings of the bandit.

    Attributes:
        responses: number of responses.
        good: number of good responses. They are the targets, with equal probabilities.
        reference_good: probability that the reference gives a good response, in (0, 1).
        moved: standard deviation of the policy's logits around the reference's; 0 is the start of training.
        beta: the loss's beta.
        positives: numbers of targets to report the error for.
        seed: seed of the reference's and the policy's logits, and of the simulation.
        replicates: number of simulated estimates per number of positives and negatives.
    """

    responses: Annotated[Count, Field(le=100_000)]
    good: Count
    reference_good: ProperFraction
    moved: Annotated[NonNegative, Field(le=100)]
    beta: Annotated[Positive, Field(le=10_000)]
    positives: Annotated[list[Count], Field(min_length=1)]
    seed: Seed
    replicates: Annotated[Count, Field(ge=2, le=10_000_000)]

    def __post_init__(self) -> None:
        check_numbers(self, "theory.bandit")
        if not 1 <= self.good <= self.responses - 2:
            raise UserError(f"theory.bandit.good={self.good}: use 1 to responses - 2, so that two are bad")

    def build(self) -> "Bandit":
        rng = np.random.default_rng(self.seed)
        is_good = np.arange(self.responses) < self.good
        weights = np.exp(rng.standard_normal(self.responses))
        mass = np.where(is_good, self.reference_good, 1 - self.reference_good)
        reference = mass * weights / np.where(is_good, weights[is_good].sum(), weights[~is_good].sum())
        logits = np.log(reference) + self.moved * rng.standard_normal(self.responses)
        return Bandit(logits, reference, is_good / self.good, reference, self.beta)


@dataclass(frozen=True)
class PairParts:
    """Hoeffding's decomposition of the variance of g(a, b) into target, negative, and their interaction (`both`).

    Attributes:
        squared: ||G||^2, with G the expectation of g.
    """

    squared: float
    target: float
    negative: float
    both: float

    def crossed(self, positives: float, negatives: float) -> float:
        """Return E ||estimate - G||^2 for the mean over all pairs of n targets and m negatives of one prompt."""
        return self.target / positives + self.negative / negatives + self.both / (positives * negatives)

    @property
    def nested(self) -> Components:
        """Return the error's parts if every target has its own negatives."""
        return Components(self.squared, self.target, self.negative + self.both)

    @property
    def pairs_per_target(self) -> float:
        """Return how many independent pairs have the same error as one target with unlimited negatives.

        As m grows, the error of n targets against m negatives falls to `target` / n. The error of n independent pairs
        is (`target` + `negative` + `both`) / n.
        """
        return (self.target + self.negative + self.both) / self.target


@dataclass(frozen=True)
class Bandit:
    """A bandit with A responses.

    Attributes:
        logits: theta, [A].
        reference: the reference's probabilities, [A].
        targets: probabilities of the target, [A].
        negatives: probabilities of a negative, [A]; equal to `reference` for Self-Contrast without a filter.
        beta: the loss's beta.
    """

    logits: Floats
    reference: Floats
    targets: Floats
    negatives: Floats
    beta: float

    @property
    def gradients(self) -> Floats:
        """Return g(a, b), [A, A, A], indexed by target, negative, and coordinate of theta."""
        rewards = self.beta * (log_softmax(self.logits) - np.log(self.reference))
        slope = -self.beta * expit(rewards[None, :] - rewards[:, None])
        unit = np.eye(len(self.logits))
        return np.asarray(slope[:, :, None] * (unit[:, None, :] - unit[None, :, :]))

    @property
    def gradient(self) -> Floats:
        """Return G, the expectation of g, [A]."""
        return np.asarray(np.einsum("a,b,abi->i", self.targets, self.negatives, self.gradients))

    @property
    def parts(self) -> PairParts:
        g, mean = self.gradients, self.gradient
        by_target = np.einsum("b,abi->ai", self.negatives, g) - mean
        by_negative = np.einsum("a,abi->bi", self.targets, g) - mean
        total = np.einsum("a,b,ab->", self.targets, self.negatives, np.square(g - mean).sum(axis=-1))
        target = float(self.targets @ np.square(by_target).sum(axis=-1))
        negative = float(self.negatives @ np.square(by_negative).sum(axis=-1))
        return PairParts(float(mean @ mean), target, negative, float(total) - target - negative)

    def filtered(self, is_false_negative: NDArray[np.bool_], kept_fraction: float) -> "Bandit":
        """Return the bandit with filtered negatives.

        Args:
            is_false_negative: responses to filter, [A].
            kept_fraction: the fraction of these responses' probability that remains, before normalisation.
        """
        kept = self.negatives * np.where(is_false_negative, kept_fraction, 1.0)
        return Bandit(self.logits, self.reference, self.targets, kept / kept.sum(), self.beta)

    def simulate(self, positives: int, negatives: int, replicates: int, seed: int, crossed: bool) -> Floats:
        """Simulate estimates of the gradient, [replicates, A].

        Args:
            positives: number of targets drawn.
            negatives: number of negatives drawn for each target, or once for all targets if `crossed`.
        """
        rng = np.random.default_rng(seed)
        size = len(self.logits)
        a = rng.choice(size, (replicates, positives, 1), p=self.targets)
        b = rng.choice(size, (replicates, 1 if crossed else positives, negatives), p=self.negatives)
        rewards = self.beta * (log_softmax(self.logits) - np.log(self.reference))
        weight = -self.beta * expit(rewards[b] - rewards[a]) / (positives * negatives)  # [replicates, n, m]
        gradients = np.zeros((replicates, size))
        rows = np.arange(replicates)[:, None, None]
        np.add.at(gradients, (np.broadcast_to(rows, weight.shape), np.broadcast_to(a, weight.shape)), weight)
        np.add.at(gradients, (np.broadcast_to(rows, weight.shape), np.broadcast_to(b, weight.shape)), -weight)
        return gradients
