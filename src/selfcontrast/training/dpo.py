"""The Lightning module of preference training over K negatives, and its metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import to_device
from selfcontrast.objectives import Objective, ObjectiveOutput, Signals
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.packed_module import PackedModule, Record, Sums
from selfcontrast.training.step_zero import StepZero
from selfcontrast.training.steps import MicroBatch, Step


class SelfContrastDPO(PackedModule):
    """DPO with one target against K negatives. A step's loss is the mean over its groups.

    Args:
        objective: the preference loss over K negatives.
        stored: reference scores of the groups, and the signals that the objective needs.
    """

    def __init__(
        self,
        policy: Any,
        optim: OptimConfig,
        total_steps: int,
        chunk_size: int,
        report: Callable[[Record], None],
        objective: Objective,
        stored: StoredScores,
    ) -> None:
        super().__init__(policy, optim, total_steps, chunk_size, report)
        self.objective = objective
        self.stored = stored
        self.max_negatives = max((len(s) - 1 for s in stored.reference.values()), default=0)
        self._step_zero: StepZero | None = None

    def on_train_start(self) -> None:
        super().on_train_start()
        if (
            self.trainer.global_step == 0
            and self.objective.needs_reference
            and self.stored.reference_is_model
            and self.stored.reference_is_start
        ):
            self._step_zero = StepZero()

    def extra_metrics(self) -> Record:
        """Return the metrics of step 0, where the policy is the reference: margin noise, loss and expected loss.

        Dropout and rounding move margins away from 0. Rounding has no effect if `hardware.rescore_reference` scored
        the reference in the same micro-batches.
        """
        if self._step_zero is None:
            return {}
        step_zero, self._step_zero = self._step_zero, None
        return step_zero.record(self.trainer)

    def losses(self, microbatch: MicroBatch) -> tuple[Tensor, Sums]:
        packed = microbatch.packed
        policy = response_log_probs(self.policy, packed, self.chunk_size)  # [B, K + 1]
        reference = _by_id(self.stored.reference, packed.ids, policy)
        needs_signals = self.objective.needs_scores or self.objective.needs_sampler
        args = (packed.lengths, packed.mask, *((self._signals(packed.ids, policy),) if needs_signals else ()))
        out = self.objective(policy, reference, *args)
        with torch.no_grad():
            if self._step_zero is not None:
                ranked = getattr(self.objective, "ranks_rewards", False)
                expected = out if ranked else self.objective(policy, policy, *args)
                self._step_zero.add(out, expected, packed.mask, microbatch.counts)
            return out.loss, self._metrics(out, policy, reference, microbatch)

    def total(self, step: Step) -> int:
        return step.groups

    def _signals(self, ids: tuple[str, ...], like: Tensor) -> Signals:
        by_id = {name: self.stored.signals[name] for name in ids}
        return Signals(
            scores=_by_id({name: signals.scores for name, signals in by_id.items()}, ids, like),
            sampler_logps=_by_id({name: signals.sampler_logps for name, signals in by_id.items()}, ids, like[:, 1:]),
        )

    def _metrics(self, out: ObjectiveOutput, policy: Tensor, reference: Tensor, microbatch: MicroBatch) -> Sums:
        """Return sums for the metrics. A metric is a mean over a group's negatives first, then over groups.

        Log-probabilities are in nats.

        `*_rank_j` is the mean over the j-th negatives of all groups that have one. The first is the most similar.

        `kl_reference_policy_on_negatives` is the k1 estimate of KL(reference || policy) per response: the mean of
        log p_reference(y) - log p_policy(y) over y ~ reference. Its samples are the negatives. They are biased, because
        a filter chose them and training pushes them down. Fresh samples mostly give a smaller value.
        """
        mask, lengths = microbatch.packed.mask, microbatch.packed.lengths
        per_token, change = policy / lengths.clamp(min=1), policy - reference
        change_metrics = {
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
            **(change_metrics if self.stored.reference_is_model else {}),
            "negatives": _sum(mask.sum(dim=1)),
            **_by_rank("accuracy", accuracy, mask, self.max_negatives),
            **_by_rank("margin", out.margin, mask, self.max_negatives),
        }


def _by_id(stored: Mapping[str, Tensor], ids: Sequence[str], like: Tensor) -> Tensor:
    """Return the stored values of these groups in the shape of `like` [B, n], padded with zeros."""
    padded = torch.zeros(like.shape, dtype=like.dtype)
    for row, name in enumerate(ids):
        values = stored[name][: like.shape[1]]
        padded[row, : len(values)] = values
    return to_device(padded, like.device)


def _sum(values: Tensor) -> Tensor:
    """Reduce [B] to [2]: the sum over groups, and the number of groups."""
    return torch.stack([values.sum().float(), values.new_full((), len(values), dtype=torch.float32)])


def _sum_of_means(values: Tensor, mask: Tensor) -> Tensor:
    """Reduce [B, K] to [2]: the sum over groups of the mean over negatives, and the number of groups with any."""
    negatives = mask.sum(dim=1)
    means = values.masked_fill(~mask, 0.0).sum(dim=1) / negatives.clamp(min=1)
    return torch.stack([means.sum().float(), (negatives > 0).sum().float()])


def _by_rank(name: str, values: Tensor, mask: Tensor, max_negatives: int) -> Sums:
    """Reduce [B, K] to [2] per rank: the sum over groups that have a negative of this rank, and their number.

    Ranks without negatives in this micro-batch are included, because every micro-batch must have the same metrics.
    """
    sums = values.new_zeros(max_negatives, 2, dtype=torch.float32)
    sums[: mask.shape[1], 0] = values.masked_fill(~mask, 0.0).sum(dim=0).float()
    sums[: mask.shape[1], 1] = mask.sum(dim=0).float()
    return {f"{name}_rank_{rank}": row for rank, row in enumerate(sums, start=1)}
