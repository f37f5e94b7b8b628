"""The objectives: each a small dataclass of its own settings, with its formula.

A new objective is one class here (or in any module that can be imported) and one YAML in `conf/objective` with its
fields. One that looks at rewards is a `Contrast`, one that looks at scores, too, a `Scored`. s is the target's reward
and s_j the reward of negative j: r(y) = beta log(p_policy(y|x) / p_reference(y|x)), per token of the response where
`length_normalised`. The formulas' functions are in `losses.py`, which needs torch; this file is part of the config and
must be quick to import.
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
    """What is stored of responses beside their tokens, for objectives that need it.

    Attributes:
        scores: by the verifier or the reward model, the target's first, [B, K+1].
        sampler_logps: of each negative, summed over its tokens, by the model that sampled it, at temperature 1, [B, K].
    """

    scores: Tensor
    sampler_logps: Tensor


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
        needs_scores: whether it looks at `Signals.scores`, which a verifier or a reward model gives.
        needs_sampler: whether it looks at `Signals.sampler_logps`, which the generator gives.
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
        """One loss per group.

        Args:
            policy_logps: summed over response tokens, [B, K+1]; column 0 is the target.
            reference_logps: [B, K+1]; not looked at where no reference is needed.
            lengths: response tokens, [B, K+1].
            mask: which negatives exist, [B, K].
            signals: given where the objective needs scores or the sampler. What it does not need may be NaN.
        """


@dataclass(frozen=True)
class TargetLikelihood:
    """Supervised fine-tuning continued: no preference, and no negative is looked at.

    The control of every contrast: the same prompts in the same order for as many steps, without what negatives add.
    """

    uses_negatives: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    needs_sampler: ClassVar[bool] = False

    def __call__(
        self,
        policy_logps: Tensor,
        reference_logps: Tensor,
        lengths: Tensor,
        mask: Tensor,
        signals: Signals | None = None,
    ) -> ObjectiveOutput:
        raise NotImplementedError("trained as supervised fine-tuning is")


@dataclass(frozen=True, kw_only=True)
class Rewarded(ABC):
    """An objective over rewards: `Contrast` over them alone, `Scored` over scores, too.

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
    needs_scores: ClassVar[bool] = False
    needs_sampler: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, "objective")

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
        ratios = policy_logps - reference_logps if self.needs_reference else policy_logps
        rewards = self.beta * (ratios / lengths.clamp(min=1) if self.length_normalised else ratios)
        s_plus, s_minus = rewards[:, 0], rewards[:, 1:]
        loss = self._loss(s_plus, s_minus, mask, signals)
        if self.nll_weight:
            loss = loss - self.nll_weight * policy_logps[:, 0] / lengths[:, 0]
        return _output(loss, rewards, mask)


class Contrast(Rewarded):
    """An objective over rewards alone: subclasses say what their loss is."""

    @abstractmethod
    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        """Loss per group [B] of the rewards of targets [B] and negatives [B, K], of which `mask` says which exist."""

    def _loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, signals: Signals | None) -> Tensor:
        return self.loss(s_plus, s_minus, mask)


class Scored(Rewarded):
    """An objective over rewards and the responses' scores: subclasses say what their loss is."""

    needs_scores: ClassVar[bool] = True

    @abstractmethod
    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        """As `Contrast.loss`, with scores [B, K+1], the target's first."""

    def _loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, signals: Signals | None) -> Tensor:
        return self.loss(s_plus, s_minus, mask, _given(signals).scores)


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

    ranks_negatives: ClassVar[bool] = True  # by their similarity to the target, so every prompt needs one

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.plackett_luce(s_plus, s_minus, mask)


@dataclass(frozen=True, kw_only=True)
class SPACE(Contrast):
    """-log sigma_mu(s) - mu mean_j log sigma_{1/mu}(-s_j), sigma_mu(x) = 1 / (1 + mu exp(-x)) (arXiv 2512.07175).

    Attributes:
        noise_ratio: mu, how many of the model's responses there are for each of the data's.
    """

    noise_ratio: Annotated[Positive, Field(le=10_000)]

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor) -> Tensor:
        return losses.space(s_plus, s_minus, mask, self.noise_ratio)


@dataclass(frozen=True, kw_only=True)
class SWEPO(Scored):
    """-log(sum_{y: above the mean score} w_y exp(s_y) / sum_y w_y exp(s_y)), w_y = exp(alpha d_y^power).

    d_y is a response's score less the mean of its prompt. The target is one of the responses: where its score is not
    above the mean, it counts among the rejected. arXiv 2412.04628, as its authors give it in arXiv 2412.16378 (eq. 5,
    appendix G.4).

    Attributes:
        alpha: how much a deviation of one weighs; 0 weighs all alike.
        power: 1, or 2, by which the worst of the rejected count most.
    """

    alpha: Annotated[NonNegative, Field(le=10_000)]
    power: Literal[1, 2]

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        return losses.swepo(s_plus, s_minus, scores, mask, self.alpha, self.power)


class LiPOLambda(Scored):
    """sum_{score_i > score_j} D_ij log(1 + exp(s_j - s_i)), D_ij by the ranks of the rewards (arXiv 2402.01878, eq. 8).

    All pairs of target and negatives with different scores. The gain is 2^score: scores are meant to lie in [0, 1].
    """

    ranks_rewards: ClassVar[bool] = True  # so it has no loss of its own where all rewards are equal, as at step 0

    def loss(self, s_plus: Tensor, s_minus: Tensor, mask: Tensor, scores: Tensor) -> Tensor:
        return losses.lipo_lambda(s_plus, s_minus, scores, mask)


@dataclass(frozen=True, kw_only=True)
class DFT:
    """-log p(y) + tau log mean_j exp(log p(y_j) / tau - log p_gen(y_j)): DFT (arXiv 2502.18679).

    p_gen is the model that sampled the negatives, at temperature 1. The log shows log-probabilities as rewards.

    Attributes:
        tau: a lower one looks at the likeliest negatives alone (> 0).
    """

    tau: Annotated[Positive, Field(le=10_000)]

    uses_negatives: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    needs_sampler: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self, "objective")

    def __call__(
        self,
        policy_logps: Tensor,
        reference_logps: Tensor,
        lengths: Tensor,
        mask: Tensor,
        signals: Signals | None = None,
    ) -> ObjectiveOutput:
        sampler = _given(signals).sampler_logps
        loss = losses.dft(policy_logps[:, 0], policy_logps[:, 1:], mask, self.tau, sampler)
        return _output(loss, policy_logps, mask)


class DFT2(DFT):
    """-l(y) + tau log mean_j exp(l(y_j) / tau), l being log p per token: DFT2 (arXiv 2502.18679), without p_gen."""

    needs_sampler: ClassVar[bool] = False

    def __call__(
        self,
        policy_logps: Tensor,
        reference_logps: Tensor,
        lengths: Tensor,
        mask: Tensor,
        signals: Signals | None = None,
    ) -> ObjectiveOutput:
        per_token = policy_logps / lengths.clamp(min=1)
        return _output(losses.dft(per_token[:, 0], per_token[:, 1:], mask, self.tau), per_token, mask)


def _output(loss: Tensor, rewards: Tensor, mask: Tensor) -> ObjectiveOutput:
    """With rewards [B, K+1] for the log."""
    chosen, rejected = rewards[:, 0].detach(), losses.where_exists(rewards[:, 1:].detach(), mask)
    return ObjectiveOutput(loss, chosen, rejected, losses.where_exists(chosen[:, None] - rejected, mask))


def _given(signals: Signals | None) -> Signals:
    if signals is None:
        raise TypeError("this objective needs signals: give it objectives.Signals")
    return signals
