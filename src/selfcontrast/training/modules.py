"""The two trainings of the method: supervised fine-tuning, and DPO over K negatives."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.objectives import Objective
from selfcontrast.training.module import PackedModule, Record, Sums
from selfcontrast.training.recipe import Recipe
from selfcontrast.training.steps import Pass, Step


class SupervisedFineTuning(PackedModule):
    """Cross-entropy on the target of the last turn, the mean over all target tokens of a step."""

    def losses(self, part: Pass) -> tuple[Tensor, Sums]:
        log_probs = response_log_probs(self.policy, part.packed, self.chunk_size)[:, 0]
        tokens = part.packed.lengths[:, 0].sum().to(log_probs.dtype)
        return -log_probs, {"loss": -log_probs.detach().sum(), "count": tokens}

    def total(self, step: Step) -> int:
        return step.target_tokens


class SelfContrastDPO(PackedModule):
    """DPO with one target against K negatives; a group is one example, and a step's loss the mean over its groups.

    Args:
        objective: the preference loss over K negatives.
        reference: per group id, the reference's summed log-probabilities, target first: [K + 1].
    """

    def __init__(
        self,
        policy: Any,
        recipe: Recipe,
        total_steps: int,
        chunk_size: int,
        report: Callable[[Record], None],
        objective: Objective,
        reference: Mapping[str, Tensor],
    ) -> None:
        super().__init__(policy, recipe, total_steps, chunk_size, report)
        self.objective = objective
        self.reference = reference

    def losses(self, part: Pass) -> tuple[Tensor, Sums]:
        packed = part.packed
        policy = response_log_probs(self.policy, packed, self.chunk_size)  # [B, K + 1]
        reference = self._reference(packed.ids, policy)
        out = self.objective(policy, reference, packed.lengths, packed.mask)
        with torch.no_grad():
            return out.loss, self._metrics(out, policy, reference, part)

    def total(self, step: Step) -> int:
        return step.groups

    def _reference(self, ids: tuple[str, ...], like: Tensor) -> Tensor:
        """The stored scores as [B, K + 1], zeros where a group has fewer negatives."""
        out = torch.zeros_like(like)
        for row, name in enumerate(ids):
            scores = self.reference[name][: like.shape[1]]
            out[row, : len(scores)] = scores
        return out

    def _metrics(self, out: Any, policy: Tensor, reference: Tensor, part: Pass) -> Sums:
        mask, lengths = part.packed.mask, part.packed.lengths
        negatives = mask.sum(dim=1).clamp(min=1)

        def over_negatives(values: Tensor) -> Tensor:
            """Mean over each group's own negatives [B, K] -> [B], then the sum over groups."""
            return (values.masked_fill(~mask, 0.0).sum(dim=1) / negatives).sum()

        per_token = policy / lengths.clamp(min=1)
        return {
            "loss": out.loss.sum(),
            "chosen_reward": out.chosen_reward.sum(),
            "rejected_reward": over_negatives(out.rejected_reward),
            "margin": over_negatives(out.margin),
            "accuracy": over_negatives((out.margin > 0).to(policy.dtype)),
            "chosen_log_prob": policy[:, 0].sum(),
            "chosen_log_prob_per_token": per_token[:, 0].sum(),
            "rejected_log_prob_per_token": over_negatives(per_token[:, 1:]),
            "chosen_log_prob_change": (policy[:, 0] - reference[:, 0]).sum(),
            "negatives": negatives.to(policy.dtype).sum(),
            "count": torch.tensor(float(len(part.packed.ids)), device=policy.device),
        }
