"""The two trainings of the method: supervised fine-tuning, and DPO over K negatives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import to_device
from selfcontrast.objectives import Objective, ObjectiveOutput, Signals
from selfcontrast.training.groups import Stored
from selfcontrast.training.module import PackedModule, Record, Sums
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.step_zero import StepZero
from selfcontrast.training.steps import MicroBatch, Step


class SupervisedFineTuning(PackedModule):
    """Cross-entropy on the target of the last turn, the mean over all target tokens of a step."""

    def losses(self, part: MicroBatch) -> tuple[Tensor, Sums]:
        log_probs = response_log_probs(self.policy, part.packed, self.chunk_size)[:, 0]
        tokens = part.packed.lengths[:, 0].sum().to(log_probs.dtype)
        return -log_probs, {"loss": torch.stack([-log_probs.detach().sum(), tokens])}

    def total(self, step: Step) -> int:
        return step.target_tokens


class SelfContrastDPO(PackedModule):
    """DPO with one target against K negatives; a group is one example, and a step's loss the mean over its groups.

    Args:
        objective: the preference loss over K negatives.
        stored: the reference's scores of the groups, and the signals that the objective needs.
    """

    def __init__(
        self,
        policy: Any,
        optim: OptimConfig,
        total_steps: int,
        chunk_size: int,
        report: Callable[[Record], None],
        objective: Objective,
        stored: Stored,
    ) -> None:
        super().__init__(policy, optim, total_steps, chunk_size, report)
        self.objective = objective
        self.stored = stored
        self.ranks = max((len(s) - 1 for s in stored.reference.values()), default=0)  # the most negatives of any
        self._first: StepZero | None = None

    def on_train_start(self) -> None:
        super().on_train_start()
        if (
            self.trainer.global_step == 0
            and self.objective.needs_reference
            and self.stored.compared
            and self.stored.is_start
        ):
            self._first = StepZero()

    def facts(self) -> Record:
        """Of step 0, where the policy is the reference: the margins' distance from 0, the loss, and what it must be.

        Margins differ from 0 by rounding (the reference was scored in other passes, but for
        `hardware.rescore_reference`) and dropout.
        """
        if self._first is None:
            return {}
        first, self._first = self._first, None
        return first.record(self.trainer)

    def losses(self, part: MicroBatch) -> tuple[Tensor, Sums]:
        packed = part.packed
        policy = response_log_probs(self.policy, packed, self.chunk_size)  # [B, K + 1]
        reference = _by_id(self.stored.reference, packed.ids, policy)
        needed = self.objective.needs_scores or self.objective.needs_sampler
        given = (packed.lengths, packed.mask, *((self._signals(packed.ids, policy),) if needed else ()))
        out = self.objective(policy, reference, *given)
        with torch.no_grad():
            if self._first is not None:
                ranked = getattr(self.objective, "ranks_rewards", False)
                zero = out if ranked else self.objective(policy, policy, *given)
                self._first.add(out, zero, packed.mask, part.counts)
            return out.loss, self._metrics(out, policy, reference, part)

    def total(self, step: Step) -> int:
        return step.groups

    def _signals(self, ids: tuple[str, ...], like: Tensor) -> Signals:
        own = {name: self.stored.signals[name] for name in ids}
        return Signals(
            scores=_by_id({name: signals.scores for name, signals in own.items()}, ids, like),
            sampler_logps=_by_id({name: signals.sampler_logps for name, signals in own.items()}, ids, like[:, 1:]),
        )

    def _metrics(self, out: ObjectiveOutput, policy: Tensor, reference: Tensor, part: MicroBatch) -> Sums:
        """What is watched, in nats: means over groups, and over each group's own negatives first.

        `*_rank_j` is of each group's j-th negative, the most similar first, over the groups that have one.

        `kl_reference_policy_on_negatives` estimates KL(reference || policy) per response by the k1 estimator, the
        mean of log p_reference(y) - log p_policy(y) over y ~ reference. Its samples are the negatives, which the
        reference did sample, but which a filter chose and training pushes down: it is biased, and fresh samples
        would mostly give less.
        """
        mask, lengths = part.packed.mask, part.packed.lengths
        per_token, change = policy / lengths.clamp(min=1), policy - reference
        moved = {
            "chosen_log_prob_change": _sum(change[:, 0]),
            "kl_reference_policy_on_negatives": _sum_of_means(-change[:, 1:], mask),
        }
        accuracy = (out.margin > 0).to(policy.dtype)
        return {
            "loss": _sum(out.loss),
            "chosen_reward": _sum(out.chosen_reward),
            "rejected_reward": _sum_of_means(out.rejected_reward, mask),
            "margin": _sum_of_means(out.margin, mask),
            "accuracy": _sum_of_means(accuracy, mask),
            "chosen_log_prob": _sum(policy[:, 0]),
            "chosen_log_prob_per_token": _sum(per_token[:, 0]),
            "rejected_log_prob_per_token": _sum_of_means(per_token[:, 1:], mask),
            **(moved if self.stored.compared else {}),
            "negatives": _sum(mask.sum(dim=1)),
            **_by_rank("accuracy", accuracy, mask, self.ranks),
            **_by_rank("margin", out.margin, mask, self.ranks),
        }


def _by_id(stored: Mapping[str, Tensor], ids: Sequence[str], like: Tensor) -> Tensor:
    """What is stored of these groups, of the shape of `like` [B, n]; zeros where a group has fewer negatives."""
    out = torch.zeros(like.shape, dtype=like.dtype)
    for row, name in enumerate(ids):
        values = stored[name][: like.shape[1]]
        out[row, : len(values)] = values
    return to_device(out, like.device)


def _sum(values: Tensor) -> Tensor:
    """[B] -> [2]: the sum over groups, and their number."""
    return torch.stack([values.sum().float(), values.new_full((), len(values), dtype=torch.float32)])


def _sum_of_means(values: Tensor, mask: Tensor) -> Tensor:
    """[B, K] -> [2]: the sum over groups of the mean over a group's own negatives, and the groups that have any."""
    negatives = mask.sum(dim=1)
    means = values.masked_fill(~mask, 0.0).sum(dim=1) / negatives.clamp(min=1)
    return torch.stack([means.sum().float(), (negatives > 0).sum().float()])


def _by_rank(name: str, values: Tensor, mask: Tensor, ranks: int) -> Sums:
    """[B, K] -> per rank [2]: the sum over the groups that have a negative of this rank, and their number.

    All of the run's ranks, also those that this pass has none of: every pass has the same metrics.
    """
    sums = values.new_zeros(ranks, 2, dtype=torch.float32)
    sums[: mask.shape[1], 0] = values.masked_fill(~mask, 0.0).sum(dim=0).float()
    sums[: mask.shape[1], 1] = mask.sum(dim=0).float()
    return {f"{name}_rank_{rank}": row for rank, row in enumerate(sums, start=1)}
