"""The objectives: each a small dataclass of its own settings, with its formula.

A new objective is one class here (or in any module that can be imported) and one YAML in `conf/objective` with its
fields. s is the target's reward and s_j the reward of negative j: r(y) = beta log(p_policy(y|x) / p_reference(y|x)),
per token of the response where `length_normalised`. The formulas' functions are in `losses.py`, which needs torch;
this file is part of the config and must be quick to import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

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
class ObjectiveOutput:
    """loss [B] with its gradient; for the log, detached: chosen_reward [B], rejected_reward and margin [B, K]
    (0 where there is no negative)."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    margin: Tensor


class Objective(Protocol):
    """What preference training needs of an objective.

    Attributes:
        uses_negatives: False for the control that continues supervised fine-tuning; it is never called.
        needs_reference: whether reference log-probabilities are used at all.
    """

    @property
    def uses_negatives(self) -> bool: ...

    @property
    def needs_reference(self) -> bool: ...

    def __call__(self, policy_logps: Tensor, reference_logps: Tensor, lengths: Tensor, mask: Tensor) -> ObjectiveOutput:
        """One loss per group.

        Args:
            policy_logps: summed over response tokens, [B, K+1]; column 0 is the target.
            reference_logps: [B, K+1]; not looked at where no reference is needed.
            lengths: response tokens, [B, K+1].
            mask: which negatives exist, [B, K].
        """


@dataclass(frozen=True)
class TargetLikelihood:
    """Supervised fine-tuning continued: no preference, and no negative is looked at.

    The control of every contrast: the same prompts in the same order for as many steps, without what negatives add.
    """

    uses_negatives: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy_logps: Tensor, reference_logps: Tensor, lengths: Tensor, mask: Tensor) -> ObjectiveOutput:
        raise NotImplementedError("trained as supervised fine-tuning is")


@dataclass(frozen=True, kw_only=True)
class Contrast(ABC):
    """An objective over rewards: subclasses say what their loss is.

    Attributes:
        beta: the reward of one nat of log-probability (> 0).
        nll_weight: of the target's negative log-likelihood per token, added to the loss (>= 0; arXiv 2404.19733).
        length_normalised: rewards per token of their response.
    """

    beta: Annotated[Positive, Field(le=10_000)]
    nll_weight: Weight
    length_normalised: bool

    uses_negatives: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self, "objective")

    @abstractmethod
    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        """Loss per group [B] of the rewards of targets [B] and negatives [B, K], of which `mask` says which exist."""

    def __call__(self, policy_logps: Tensor, reference_logps: Tensor, lengths: Tensor, mask: Tensor) -> ObjectiveOutput:
        ratios = policy_logps - reference_logps if self.needs_reference else policy_logps
        rewards = self.beta * (ratios / lengths.clamp(min=1) if self.length_normalised else ratios)
        s_plus, s_minus = rewards[:, 0], rewards[:, 1:]
        loss = self.loss(s_plus, s_minus, mask)
        if self.nll_weight:
            loss = loss - self.nll_weight * policy_logps[:, 0] / lengths[:, 0]
        chosen, rejected = s_plus.detach(), losses.where_exists(s_minus.detach(), mask)
        return ObjectiveOutput(loss, chosen, rejected, losses.where_exists(chosen[:, None] - rejected, mask))


@dataclass(frozen=True, kw_only=True)
class Weighted(Contrast):
    """An objective whose negatives can count differently.

    Attributes:
        rank_weights: one positive weight per rank of negative, the most similar first, or None for equal ones.
    """

    rank_weights: Sequence[Positive] | None

    def weights(self, s_minus: Tensor) -> Tensor | None:
        """[B, K]. Raises `UserError` where there are more negatives than weights."""
        if self.rank_weights is None:
            return None
        if len(self.rank_weights) < s_minus.shape[1]:
            raise UserError(
                f"objective.rank_weights holds {len(self.rank_weights)} weights, and there are "
                f"{s_minus.shape[1]} negatives: give one each, or null."
            )
        return losses.row(list(self.rank_weights)[: s_minus.shape[1]], s_minus).expand_as(s_minus)


class MeanOfPairs(Weighted):
    """(1/K) sum_j core(s - s_j), where subclasses say what the core is."""

    @abstractmethod
    def core(self, margin: Tensor) -> Tensor:
        """The loss of a margin, of any shape."""

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.mean_of_pairs(self.core, s_plus, s_minus, mask, self.weights(s_minus))


@dataclass(frozen=True, kw_only=True)
class SelfContrast(MeanOfPairs):
    """The paper's (arXiv 2404.00604): DPO's loss (arXiv 2305.18290, eq. 7), its mean over the K pairs.

    Attributes:
        label_smoothing: the probability that a preference is flipped; above 0 it is conservative DPO.
    """

    label_smoothing: Smoothing

    def core(self, margin: Tensor) -> Tensor:
        return losses.sigmoid(margin, self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Robust(MeanOfPairs):
    """Robust DPO (arXiv 2403.00409): unbiased under flipped preferences.

    Attributes:
        label_smoothing: the share of preferences that are flipped.
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
            raise UserError("objective.length_normalised=false must be true: SimPO's rewards are per token")

    def core(self, margin: Tensor) -> Tensor:
        return losses.simpo(margin, self.margin)


@dataclass(frozen=True, kw_only=True)
class MeanMargin(Weighted):
    """DPO's loss of s - mean_j s_j: multi-sample DPO."""

    label_smoothing: Smoothing

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.mean_margin(s_plus, s_minus, mask, self.weights(s_minus), self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Hardest(Contrast):
    """max_j of DPO's loss of s - s_j."""

    label_smoothing: Smoothing

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.hardest(s_plus, s_minus, mask, self.label_smoothing)


class Softmax(Weighted):
    """log(1 + sum_j w_j exp(s_j - s)): S-DPO (arXiv 2406.09215), InfoNCA (arXiv 2402.05369)."""

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.softmax(s_plus, s_minus, mask, self.weights(s_minus))


class NCA(Weighted):
    """-log sigmoid(s) - (1/(K+1)) sum over all K+1 of log sigmoid(-s_i) (arXiv 2402.05369)."""

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.nca(s_plus, s_minus, mask, self.weights(s_minus))


class PlackettLuce(Contrast):
    """The likelihood of a ranking: the target, then the negatives, the most similar first (arXiv 2305.18290)."""

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.plackett_luce(s_plus, s_minus, mask)
