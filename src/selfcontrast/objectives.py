"""Preference losses over one target and K negatives: an aggregation over K, and a pairwise core.

Pure functions of s_plus [B], s_minus [B, K], mask [B, K] and, where they are taken, weights [B, K]: the
rewards r(y) = beta (log p_policy(y|x) - log p_reference(y|x)) of target and negatives, and which negatives
exist. They return one loss per group, [B], so that the caller can divide by the groups of the whole optimiser
step. What stands in a masked column, be it inf or nan, changes nothing and gets a gradient of exactly zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from selfcontrast.errors import UserError

Aggregation = Literal["mean_of_pairs", "softmax", "plackett_luce", "mean_margin", "hardest", "nca"]
CoreName = Literal["sigmoid", "robust", "ipo", "hinge", "simpo"]
Core = Callable[[Tensor], Tensor]  # margin s - s_j, of any shape, to its loss


# ---- cores


def sigmoid(margin: Tensor, label_smoothing: float) -> Tensor:
    """-(1-e) log sigmoid(m) - e log sigmoid(-m). DPO (arXiv 2305.18290, eq. 7); e > 0 is conservative DPO."""
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def robust(margin: Tensor, label_smoothing: float) -> Tensor:
    """(-(1-e) log sigmoid(m) + e log sigmoid(-m)) / (1-2e): unbiased under flips (arXiv 2403.00409)."""
    noisy = -(1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)
    return noisy / (1 - 2 * label_smoothing)


def ipo(margin: Tensor, beta: float) -> Tensor:
    """(m/beta - 1/(2 beta))^2. IPO (arXiv 2310.12036, eq. 17)."""
    return ((margin - 0.5) / beta).square()


def hinge(margin: Tensor) -> Tensor:
    """max(0, 1 - m). SLiC (arXiv 2305.10425)."""
    return (1 - margin).relu()


def simpo(margin: Tensor, gamma: float) -> Tensor:
    """-log sigmoid(m - gamma), on rewards (beta/|y|) log p(y|x). SimPO (arXiv 2405.14734, eq. 6)."""
    return -logsigmoid(margin - gamma)


# ---- aggregations


def mean_of_pairs(core: Core, s_plus: Tensor, s_minus: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """(1/K) sum_j core(s - s_j): the paper's (arXiv 2404.00604); with weights, their weighted mean."""
    losses = core(s_plus[:, None] - _real(s_minus, mask))
    return _mean(losses, mask, weights)


def mean_margin(core: Core, s_plus: Tensor, s_minus: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """core(s - mean_j s_j): multi-sample DPO."""
    losses = core(s_plus - _mean(_real(s_minus, mask), mask, weights))
    return _real(losses, mask.any(-1))


def hardest(core: Core, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
    """max_j core(s - s_j)."""
    if not mask.shape[1]:
        return torch.zeros_like(s_plus)
    losses = core(s_plus[:, None] - _real(s_minus, mask)).masked_fill(~mask, -torch.inf)
    return _real(losses.amax(-1), mask.any(-1))


def softmax(s_plus: Tensor, s_minus: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """log(1 + sum_j w_j exp(s_j - s)): S-DPO (arXiv 2406.09215), InfoNCA (arXiv 2402.05369)."""
    exponents = _real(s_minus, mask) - s_plus[:, None] + _real(weights, mask).log()
    return torch.cat([torch.zeros_like(s_plus)[:, None], exponents], -1).logsumexp(-1)


def plackett_luce(s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
    """-sum_k log(e^s_k / sum_{l>=k} e^s_l), the target first, then the negatives by column, which must be in
    order, best (most similar) first. DPO's appendix (arXiv 2305.18290)."""
    scores = torch.cat([s_plus[:, None], _real(s_minus, mask)], -1)
    exists = torch.cat([mask.new_ones(len(mask), 1), mask], -1)
    follows = exists.new_ones(exists.shape[1], exists.shape[1]).triu()
    itself = torch.eye(len(follows), dtype=torch.bool, device=mask.device)
    rivals = (follows & exists[:, None, :]) | itself
    totals = scores[:, None, :].masked_fill(~rivals, -torch.inf).logsumexp(-1)
    return _real(totals - scores, exists).sum(-1)


def nca(s_plus: Tensor, s_minus: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """-log sigmoid(s) - (1/(K+1)) sum over all K+1 of log sigmoid(-s_i). NCA (arXiv 2402.05369)."""
    shunned = logsigmoid(-s_plus) + (_real(weights, mask) * logsigmoid(-_real(s_minus, mask))).sum(-1)
    return -logsigmoid(s_plus) - shunned / (mask.sum(-1) + 1)


def _real(values: Tensor, mask: Tensor) -> Tensor:
    """0 where masked: before any arithmetic, so that no inf or nan reaches a gradient."""
    return torch.where(mask, values, 0.0)


def _mean(values: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the existing of [B, K]; 0 for a group without any."""
    weights = _real(weights, mask)
    return (_real(values, mask) * weights).sum(-1) / weights.sum(-1).where(mask.any(-1), 1.0)


# ---- the objective of a run


@dataclass(frozen=True)
class ObjectiveOutput:
    """loss [B] with its gradient; for the log, detached: chosen_reward [B], rejected_reward and margin [B, K]
    (0 where there is no negative)."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    margin: Tensor


@dataclass(frozen=True)
class TargetLikelihood:
    """Supervised fine-tuning continued: no preference, and no negative is looked at.

    The control of every contrast: the same prompts in the same order for as many steps, without what negatives add.
    """


@dataclass(frozen=True)
class Objective:
    """One choice of aggregation and core, with its settings; `conf/objective` explains each.

    Attributes:
        aggregation: over the K negatives; softmax, plackett_luce and nca have the sigmoid built in.
        core: the loss of a margin; simpo does without a reference.
        beta: the reward of one nat of log-probability (> 0).
        label_smoothing: the probability that a preference is flipped, for sigmoid and robust ([0, 0.5)).
        margin: SimPO's gamma, in units of reward (>= 0).
        nll_weight: of the target's negative log-likelihood per token, added to the loss (>= 0).
        length_normalised: rewards per token of their response.
        rank_weights: one positive weight per rank of negative, or None for equal ones.
    """

    aggregation: Aggregation
    core: CoreName
    beta: float
    label_smoothing: float
    margin: float
    nll_weight: float
    length_normalised: bool
    rank_weights: Sequence[float] | None

    def __post_init__(self) -> None:
        self._check(self.aggregation in get_args(Aggregation), "aggregation", f"one of {get_args(Aggregation)}")
        self._check(self.core in get_args(CoreName), "core", f"one of {get_args(CoreName)}")
        self._check(self.beta > 0, "beta", "above 0")
        self._check(0 <= self.label_smoothing < 0.5, "label_smoothing", "in [0, 0.5)")
        self._check(self.margin >= 0, "margin", "at least 0")
        self._check(self.nll_weight >= 0, "nll_weight", "at least 0")
        self._check(all(w > 0 for w in self.rank_weights or ()), "rank_weights", "above 0, each of them")
        if self.aggregation in ("softmax", "plackett_luce", "nca"):
            self._check(self.core == "sigmoid", "core", f"sigmoid, which {self.aggregation} is defined with")
            self._check(not self.label_smoothing, "label_smoothing", f"0: {self.aggregation} has none")
        if self.core not in ("sigmoid", "robust"):
            self._check(not self.label_smoothing, "label_smoothing", f"0: core {self.core} has none")
        if self.core == "simpo":
            self._check(self.length_normalised, "length_normalised", "true: simpo's rewards are per token")
        else:
            self._check(not self.margin, "margin", f"0: core {self.core} has none, simpo has")
        if self.aggregation in ("plackett_luce", "hardest"):
            self._check(self.rank_weights is None, "rank_weights", f"null: {self.aggregation} takes none")

    def _check(self, fine: bool, name: str, must_be: str) -> None:
        if not fine:
            raise UserError(f"objective.{name}={getattr(self, name)} must be {must_be}")

    @property
    def needs_reference(self) -> bool:
        """Whether reference log-probabilities are used at all."""
        return self.core != "simpo"

    def __call__(self, policy_logps: Tensor, reference_logps: Tensor, lengths: Tensor, mask: Tensor) -> ObjectiveOutput:
        """One loss per group.

        Args:
            policy_logps: summed over response tokens, [B, K+1]; column 0 is the target.
            reference_logps: [B, K+1]; not looked at by simpo.
            lengths: response tokens, [B, K+1].
            mask: which negatives exist, [B, K].

        Raises `UserError` where there are more negatives than rank_weights.
        """
        ratios = policy_logps - reference_logps if self.needs_reference else policy_logps
        rewards = self.beta * (ratios / lengths.clamp(min=1) if self.length_normalised else ratios)
        s_plus, s_minus = rewards[:, 0], rewards[:, 1:]
        loss = self._preference(s_plus, s_minus, mask)
        if self.nll_weight:  # per token, as in arXiv 2404.19733
            loss = loss - self.nll_weight * policy_logps[:, 0] / lengths[:, 0]
        chosen, rejected = s_plus.detach(), _real(s_minus.detach(), mask)
        return ObjectiveOutput(loss, chosen, rejected, _real(chosen[:, None] - rejected, mask))

    def _preference(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        core, weights = self._core(), self._weights(s_minus)
        match self.aggregation:
            case "mean_of_pairs":
                return mean_of_pairs(core, s_plus, s_minus, mask, weights)
            case "mean_margin":
                return mean_margin(core, s_plus, s_minus, mask, weights)
            case "hardest":
                return hardest(core, s_plus, s_minus, mask)
            case "softmax":
                return softmax(s_plus, s_minus, mask, weights)
            case "plackett_luce":
                return plackett_luce(s_plus, s_minus, mask)
            case "nca":
                return nca(s_plus, s_minus, mask, weights)

    def _core(self) -> Core:
        match self.core:
            case "sigmoid":
                return partial(sigmoid, label_smoothing=self.label_smoothing)
            case "robust":
                return partial(robust, label_smoothing=self.label_smoothing)
            case "ipo":
                return partial(ipo, beta=self.beta)
            case "hinge":
                return hinge
            case "simpo":
                return partial(simpo, gamma=self.margin)

    def _weights(self, s_minus: Tensor) -> Tensor:
        """[B, K]"""
        if self.rank_weights is None:
            return torch.ones_like(s_minus)
        if len(self.rank_weights) < s_minus.shape[1]:
            raise UserError(
                f"objective.rank_weights holds {len(self.rank_weights)} weights, and there are "
                f"{s_minus.shape[1]} negatives: give one each, or null."
            )
        weights = s_minus.new_tensor(list(self.rank_weights)[: s_minus.shape[1]])
        return weights.expand_as(s_minus)
