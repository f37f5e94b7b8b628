"""The objective of a run: one choice of aggregation over K negatives and pairwise core, with its settings.

The formulas are in `losses.py`, which needs torch; this file is part of the config and must be quick to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field

from selfcontrast.constrained import NonNegative, Positive, Real, check_numbers
from selfcontrast.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from selfcontrast.losses import Core

Aggregation = Literal["mean_of_pairs", "softmax", "plackett_luce", "mean_margin", "hardest", "nca"]
CoreName = Literal["sigmoid", "robust", "ipo", "hinge", "simpo"]


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
    beta: Annotated[Positive, Field(le=10_000)]
    label_smoothing: Annotated[Real, Field(ge=0, lt=0.5)]
    margin: Annotated[NonNegative, Field(le=10_000)]
    nll_weight: Annotated[NonNegative, Field(le=10_000)]
    length_normalised: bool
    rank_weights: Sequence[Positive] | None

    def __post_init__(self) -> None:
        check_numbers(self, "objective")
        self._check(self.aggregation in get_args(Aggregation), "aggregation", f"one of {get_args(Aggregation)}")
        self._check(self.core in get_args(CoreName), "core", f"one of {get_args(CoreName)}")
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
        from selfcontrast.losses import where_exists

        ratios = policy_logps - reference_logps if self.needs_reference else policy_logps
        rewards = self.beta * (ratios / lengths.clamp(min=1) if self.length_normalised else ratios)
        s_plus, s_minus = rewards[:, 0], rewards[:, 1:]
        loss = self._preference(s_plus, s_minus, mask)
        if self.nll_weight:  # per token, as in arXiv 2404.19733
            loss = loss - self.nll_weight * policy_logps[:, 0] / lengths[:, 0]
        chosen, rejected = s_plus.detach(), where_exists(s_minus.detach(), mask)
        return ObjectiveOutput(loss, chosen, rejected, where_exists(chosen[:, None] - rejected, mask))

    def _preference(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        from selfcontrast import losses

        core, weights = self._core(), self._weights(s_minus)
        match self.aggregation:
            case "mean_of_pairs":
                return losses.mean_of_pairs(core, s_plus, s_minus, mask, weights)
            case "mean_margin":
                return losses.mean_margin(core, s_plus, s_minus, mask, weights)
            case "hardest":
                return losses.hardest(core, s_plus, s_minus, mask)
            case "softmax":
                return losses.softmax(s_plus, s_minus, mask, weights)
            case "plackett_luce":
                return losses.plackett_luce(s_plus, s_minus, mask)
            case "nca":
                return losses.nca(s_plus, s_minus, mask, weights)

    def _core(self) -> Core:
        from selfcontrast import losses

        match self.core:
            case "sigmoid":
                return partial(losses.sigmoid, label_smoothing=self.label_smoothing)
            case "robust":
                return partial(losses.robust, label_smoothing=self.label_smoothing)
            case "ipo":
                return partial(losses.ipo, beta=self.beta)
            case "hinge":
                return losses.hinge
            case "simpo":
                return partial(losses.simpo, gamma=self.margin)

    def _weights(self, s_minus: Tensor) -> Tensor:
        """[B, K], without waiting for the GPU."""
        import torch

        from selfcontrast.models.packing import to_device

        if self.rank_weights is None:
            return s_minus.new_ones(s_minus.shape)
        if len(self.rank_weights) < s_minus.shape[1]:
            raise UserError(
                f"objective.rank_weights holds {len(self.rank_weights)} weights, and there are "
                f"{s_minus.shape[1]} negatives: give one each, or null."
            )
        weights = torch.tensor(list(self.rank_weights)[: s_minus.shape[1]], dtype=s_minus.dtype)
        return to_device(weights, s_minus.device).expand_as(s_minus)
