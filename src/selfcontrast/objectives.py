"""The preference objectives: one small dataclass each, with its settings and its formula.

To add an objective, write one class in this file, or in any importable module, and one YAML with its fields in
`conf/objective`. Subclass `Contrast` for a loss of rewards, or `ScoredContrast` for a loss of rewards and scores.

In the formulas s is the reward of the target and s_j the reward of negative j. The reward is r(y) = beta
log(p_policy(y|x) / p_reference(y|x)), divided by the response's tokens if `length_normalised`. The functions are in
`losses.py`, which needs torch. This file is part of the config and must be quick to import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from selfcontrast.constrained import NonNegative, Positive, Real, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.lazy import Lazy

if TYPE_CHECKING:
    from torch import Tensor

    import selfcontrast.losses as losses
else:
    losses = Lazy("selfcontrast.losses")

Smoothing = Annotated[Real, Field(ge=0, lt=0.5)]
Weight = Annotated[NonNegative, Field(le=10_000)]


@dataclass(frozen=True)
class Signals:
    """Data about responses other than their tokens, for objectives that need it.

    Attributes:
        scores: scores by the verifier or the reward model, the target's first, [B, K+1].
        sampler_logps: log-probability of each negative under the model that sampled it, at temperature 1, summed over
            its tokens, [B, K].
    """

    scores: Tensor
    sampler_logps: Tensor


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss [B] with its gradient, and detached values for logging: chosen_reward [B], rejected_reward and margin
    [B, K]. The last two are 0 where a negative is missing."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    margin: Tensor


class Objective(Protocol):
    """The interface that preference training needs.

    Attributes:
        uses_negatives: False for the control, continued supervised fine-tuning. Such an objective is never called.
        needs_reference: True if it uses reference log-probabilities.
        needs_scores: True if it uses `Signals.scores`, which a verifier or a reward model gives.
        needs_sampler: True if it uses `Signals.sampler_logps`, which the generator gives.
    """

    @property
    def uses_negatives(self) -> bool: ...

    @property
    def needs_reference(self) -> bool: ...

    @property
    def needs_scores(self) -> bool: ...

    @property
    def needs_sampler(self) -> bool: ...

    def __call__(
        self,
        policy_logps: Tensor,
        reference_logps: Tensor,
        lengths: Tensor,
        mask: Tensor,
        signals: Signals | None = None,
    ) -> ObjectiveOutput:
        """Return one loss per group.

        Args:
            policy_logps: summed over response tokens, [B, K+1]; column 0 is the target.
            reference_logps: [B, K+1]; ignored unless `needs_reference`.
            lengths: response tokens, [B, K+1].
            mask: True for existing negatives, [B, K].
            signals: required if the objective needs scores or the sampler. Fields that it does not need may be NaN.
        """


@dataclass(frozen=True)
class TargetLikelihood:
    """Continued supervised fine-tuning, without preferences or negatives.

    The control for every contrast: the same prompts in the same order for the same number of steps.
    """

    uses_negatives: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    needs_sampler: ClassVar[bool] = False

    def __call__(self, *args: object, **kwargs: object) -> ObjectiveOutput:
        raise NotImplementedError("TargetLikelihood trains with the loss of supervised fine-tuning")


class RewardObjective(ABC):
    """An objective over one reward per response: subclasses define the rewards and the loss.

    Attributes:
        nll_weight: weight of the target's negative log-likelihood per token, added to the loss (arXiv 2404.19733).
    """

    uses_negatives: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False
    needs_sampler: ClassVar[bool] = False

    nll_weight: float

    def __post_init__(self) -> None:
        check_numbers(self, "objective")

    @abstractmethod
    def rewards(self, policy_logps: Tensor, reference_logps: Tensor, lengths: Tensor) -> Tensor:
        """Return the reward of each response, [B, K+1]. The arguments are those of `Objective.__call__`."""

    @abstractmethod
    def _loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, signals: Signals | None) -> Tensor: ...

    def __call__(
        self,
        policy_logps: Tensor,
        reference_logps: Tensor,
        lengths: Tensor,
        mask: Tensor,
        signals: Signals | None = None,
    ) -> ObjectiveOutput:
        rewards = self.rewards(policy_logps, reference_logps, lengths)
        loss = self._loss(rewards[:, 0], rewards[:, 1:], mask, signals)
        if self.nll_weight:
            loss = loss - self.nll_weight * policy_logps[:, 0] / lengths[:, 0]
        chosen, rejected = rewards[:, 0].detach(), losses.where_exists(rewards[:, 1:].detach(), mask)
        return ObjectiveOutput(loss, chosen, rejected, losses.where_exists(chosen[:, None] - rejected, mask))


@dataclass(frozen=True, kw_only=True)
class ImplicitReward(RewardObjective):
    """An objective over DPO's implicit rewards.

    Attributes:
        beta: the reward of one nat of log-probability (> 0).
        length_normalised: True to divide rewards by the tokens of their response.
    """

    beta: Annotated[Positive, Field(le=10_000)]
    nll_weight: Weight
    length_normalised: bool

    def rewards(self, policy_logps: Tensor, reference_logps: Tensor, lengths: Tensor) -> Tensor:
        ratios = policy_logps - reference_logps if self.needs_reference else policy_logps
        return self.beta * (ratios / lengths.clamp(min=1) if self.length_normalised else ratios)


class Contrast(ImplicitReward):
    """An objective over rewards alone: subclasses define `loss`."""

    @abstractmethod
    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        """Return the loss per group [B] from rewards of targets [B] and negatives [B, K]; `mask` [B, K] marks
        existing negatives."""

    def _loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, signals: Signals | None) -> Tensor:
        return self.loss(s_plus, s_minus, mask)


class ScoredContrast(ImplicitReward):
    """An objective over rewards and the responses' scores: subclasses define `loss`."""

    needs_scores: ClassVar[bool] = True

    @abstractmethod
    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        """Return the loss per group [B], as `Contrast.loss` does. `scores` is [B, K+1], the target's first."""

    def _loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, signals: Signals | None) -> Tensor:
        return self.loss(s_plus, s_minus, mask, _require(signals).scores)


@dataclass(frozen=True, kw_only=True)
class WeightedContrast(Contrast):
    """A contrast that can weight its negatives.

    Attributes:
        rank_weights: one positive weight per negative, the most similar first, or None for equal weights.
    """

    rank_weights: Sequence[Positive] | None

    def weights(self, s_minus: Tensor) -> Tensor | None:
        """Return the weights [B, K], or None if all are equal. Raise `UserError` if there are fewer weights than
        negatives."""
        if self.rank_weights is None:
            return None
        if len(self.rank_weights) < s_minus.shape[1]:
            raise UserError(
                f"objective.rank_weights has {len(self.rank_weights)} weights for {s_minus.shape[1]} negatives. "
                "Give one weight per negative, or null."
            )
        return losses.row(list(self.rank_weights)[: s_minus.shape[1]], s_minus).expand_as(s_minus)


class MeanOfPairs(WeightedContrast):
    """(1/K) sum_j core(s - s_j): subclasses define `core`."""

    @abstractmethod
    def core(self, margin: Tensor) -> Tensor:
        """Return the loss of each margin, a tensor of any shape."""

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.mean_of_pairs(self.core, s_plus, s_minus, mask, self.weights(s_minus))


@dataclass(frozen=True, kw_only=True)
class SelfContrast(MeanOfPairs):
    """The paper's objective (arXiv 2404.00604): DPO's loss (arXiv 2305.18290, eq. 7), averaged over the K pairs.

    Attributes:
        label_smoothing: the probability that a preference is flipped; above 0 this is conservative DPO.
    """

    label_smoothing: Smoothing

    def core(self, margin: Tensor) -> Tensor:
        return losses.sigmoid(margin, self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Robust(MeanOfPairs):
    """Robust DPO (arXiv 2403.00409): unbiased under flipped preferences.

    Attributes:
        label_smoothing: the fraction of preferences that are flipped.
    """

    label_smoothing: Smoothing

    def core(self, margin: Tensor) -> Tensor:
        return losses.robust(margin, self.label_smoothing)


class IPO(MeanOfPairs):
    """(m/beta - 1/(2 beta))^2 of a margin m (arXiv 2310.12036, eq. 17)."""

    def core(self, margin: Tensor) -> Tensor:
        return losses.ipo(margin, self.beta)


class Hinge(MeanOfPairs):
    """max(0, 1 - m) of a margin m: SLiC (arXiv 2305.10425)."""

    def core(self, margin: Tensor) -> Tensor:
        return losses.hinge(margin)


@dataclass(frozen=True, kw_only=True)
class SimPO(MeanOfPairs):
    """-log sigmoid(m - gamma) of a margin m of rewards without a reference (arXiv 2405.14734, eq. 6).

    Attributes:
        margin: gamma, in units of reward.
    """

    margin: Weight

    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.length_normalised:
            raise UserError("objective.length_normalised=false, but SimPO's rewards are per token. Set it to true.")

    def core(self, margin: Tensor) -> Tensor:
        return losses.simpo(margin, self.margin)


@dataclass(frozen=True, kw_only=True)
class MeanMargin(WeightedContrast):
    """DPO's loss of s - mean_j s_j: multi-sample DPO."""

    label_smoothing: Smoothing

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.mean_margin(s_plus, s_minus, mask, self.weights(s_minus), self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Hardest(Contrast):
    """max_j of DPO's loss of s - s_j; the mean over negatives whose reward is within 1e-3 of that negative's."""

    label_smoothing: Smoothing

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.hardest(s_plus, s_minus, mask, self.label_smoothing)


class Softmax(WeightedContrast):
    """log(1 + sum_j w_j exp(s_j - s)): S-DPO (arXiv 2406.09215), InfoNCA (arXiv 2402.05369)."""

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.softmax(s_plus, s_minus, mask, self.weights(s_minus))


class NCA(WeightedContrast):
    """-log sigmoid(s) - (1/(K+1)) sum over all K+1 of log sigmoid(-s_i) (arXiv 2402.05369)."""

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.nca(s_plus, s_minus, mask, self.weights(s_minus))


class PlackettLuce(Contrast):
    """The negative log-likelihood of a ranking: target, then negatives, most similar first (arXiv 2305.18290)."""

    ranks_negatives: ClassVar[bool] = True  # by similarity to the target, so every prompt needs a target

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.plackett_luce(s_plus, s_minus, mask)


@dataclass(frozen=True, kw_only=True)
class SPACE(Contrast):
    """-log sigma_mu(s) - mu mean_j log sigma_{1/mu}(-s_j), sigma_mu(x) = 1 / (1 + mu exp(-x)) (arXiv 2512.07175).

    Attributes:
        noise_ratio: mu, the number of model responses per data response.
    """

    noise_ratio: Annotated[Positive, Field(le=10_000)]

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.space(s_plus, s_minus, mask, self.noise_ratio)


@dataclass(frozen=True, kw_only=True)
class SWEPO(ScoredContrast):
    """-log(sum_{y: above the mean score} w_y exp(s_y) / sum_y w_y exp(s_y)), w_y = exp(alpha d_y^power).

    d_y is a response's score minus the mean score of its prompt. A target whose score is not above the mean counts as
    rejected. arXiv 2412.04628, in the form of the authors' later paper (arXiv 2412.16378, eq. 5, appendix G.4).

    Attributes:
        alpha: logarithm of the weight of a response with d_y = 1; 0 gives all responses equal weight.
        power: 1 or 2; with 2 the worst rejected responses count most.
    """

    alpha: Annotated[NonNegative, Field(le=10_000)]
    power: Literal[1, 2]

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        return losses.swepo(s_plus, s_minus, scores, mask, self.alpha, self.power)


class LiPOLambda(ScoredContrast):
    """sum_{score_i > score_j} D_ij log(1 + exp(s_j - s_i)), D_ij from the ranks of rewards (arXiv 2402.01878, eq. 8).

    The sum is over all pairs of target and negatives with different scores. The gain is 2^score, so scores should lie
    in [0, 1].
    """

    ranks_rewards: ClassVar[bool] = True  # bfloat16's noise at step 0 decides the ranks, and so the expected loss

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        return losses.lipo_lambda(s_plus, s_minus, scores, mask)


@dataclass(frozen=True, kw_only=True)
class DFT(RewardObjective):
    """-log p(y) + tau log mean_j exp(log p(y_j) / tau - log p_gen(y_j)): DFT (arXiv 2502.18679).

    p_gen is the model that sampled the negatives, at temperature 1. Rewards are the policy's log-probabilities.

    Attributes:
        tau: temperature (> 0); a lower temperature weights the likeliest negatives more.
    """

    tau: Annotated[Positive, Field(le=10_000)]

    nll_weight = 0.0  # not a setting: the loss already has the target's likelihood
    needs_reference: ClassVar[bool] = False
    needs_sampler: ClassVar[bool] = True

    def rewards(self, policy_logps: Tensor, reference_logps: Tensor, lengths: Tensor) -> Tensor:
        return policy_logps

    def _loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, signals: Signals | None) -> Tensor:
        sampler_logps = _require(signals).sampler_logps if self.needs_sampler else None
        return losses.dft(s_plus, s_minus, mask, self.tau, sampler_logps)


class DFT2(DFT):
    """-l(y) + tau log mean_j exp(l(y_j) / tau), with l = log p per token: DFT2 (arXiv 2502.18679), without p_gen."""

    needs_sampler: ClassVar[bool] = False

    def rewards(self, policy_logps: Tensor, reference_logps: Tensor, lengths: Tensor) -> Tensor:
        return policy_logps / lengths.clamp(min=1)


def _require(signals: Signals | None) -> Signals:
    if signals is None:
        raise TypeError("this objective needs signals. Pass objectives.Signals.")
    return signals
