"""Check the start of preference training: policy and reference are the same model, so every margin is 0.

The objective is evaluated twice on each group of step 0: with the reference's scores, and with the policy's scores in
their place. The second result is the expected loss, because every log-ratio is exactly 0. It is ln 2 for DPO and
log(1 + K) for a softmax over K negatives, and takes lengths, masks and weights into account.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor

from selfcontrast.objectives import ObjectiveOutput

MARGIN_NOISE = 0.05  # in units of reward; this much changes the gradient weight of a preference by one percent
LOSS_NOISE = 1e-3  # fraction of the loss that is too small to see in a curve
MAX_ERRORS = 4  # a random difference from 0 stays below this many standard errors

log = logging.getLogger(__name__)


class StepZero:
    """Sums over the micro-batches of step 0, and the metrics from them."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, out: ObjectiveOutput, expected: ObjectiveOutput, mask: Tensor, counts: bool) -> None:
        """Add a micro-batch of B groups: the objective's output, and the output at log-ratios of 0. `mask`: [B, K]."""
        difference = out.loss - expected.loss
        terms = (out.margin.square(), mask, out.loss, expected.loss, difference.square(), torch.ones_like(difference))
        self._sums.append(torch.stack([term.sum().float() for term in terms]) * counts)

    def record(self, trainer: Any) -> dict[str, float]:
        """Return the metrics over all ranks. Log one line: a warning if the policy does not start at its reference."""
        total = torch.stack(self._sums).sum(0)
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        squares, pairs, loss, expected, squared_gap, groups = total.tolist()
        noise, loss, expected = math.sqrt(squares / max(1.0, pairs)), loss / groups, expected / groups
        if trainer.is_global_zero:
            _log_start(noise, loss, expected, within_noise(loss - expected, squared_gap / groups, groups, expected))
        return {"step0/margin_std": noise, "step0/loss": loss, "step0/expected_loss": expected}


def within_noise(difference: float, square: float, groups: float, expected: float) -> bool:
    """Return True if noise explains the difference between the loss and the expected loss.

    Args:
        difference: mean over groups of the loss minus the expected loss.
        square: mean over groups of the squared difference.
    """
    error = math.sqrt(max(0.0, square - difference**2) / max(1.0, groups - 1))
    return abs(difference) <= max(MAX_ERRORS * error, LOSS_NOISE * max(1.0, abs(expected)))


def _log_start(noise: float, loss: float, expected: float, is_noise: bool) -> None:
    if noise > MARGIN_NOISE:
        log.warning(
            "align: at step 0 margins have a standard deviation of %.3g and the loss is %.5g instead of %.5g, though "
            "policy and reference are the same. The cause is dropout or rounding. In bf16 use "
            "hardware.rescore_reference=true or lower objective.beta.",
            noise,
            loss,
            expected,
        )
    elif not is_noise:
        log.warning(
            "align: at step 0 the loss is %.5g, but a policy that equals its reference has %.5g. The difference is "
            "more than noise. Score the reference again with recompute=[reference] or hardware.rescore_reference=true.",
            loss,
            expected,
        )
    else:
        log.info(
            "align: at step 0 the loss is %.5g (expected at margins of 0: %.5g); standard deviation of margins %.2g",
            loss,
            expected,
            noise,
        )
