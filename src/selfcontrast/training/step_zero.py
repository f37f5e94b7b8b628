"""Check the start of preference training: policy and reference are the same model, so every margin is 0.

The objective is evaluated twice on each group of step 0: on the reference's scores, and on the policy's own in their
place. The second is the loss where every log-ratio is exactly 0: ln 2 for DPO, log(1 + K) for a softmax over K
negatives, and what the objective makes of lengths, masks and weights in general.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor

from selfcontrast.objectives import ObjectiveOutput

MARGIN_NOISE = 0.05  # in units of reward; a preference's weight in the gradient then is off by one percent
LOSS_NOISE = 1e-3  # of the loss: as much is not seen in a curve
ERRORS = 4  # standard errors: differences of groups that point in no one direction stay within them

log = logging.getLogger(__name__)


class StepZero:
    """Sums over the passes of step 0, and what they say."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, out: ObjectiveOutput, zero: ObjectiveOutput, mask: Tensor, counts: bool) -> None:
        """Add a pass: the objective of B groups as it is, and with every log-ratio 0. `mask` [B, K] is of negatives."""
        difference = out.loss - zero.loss
        terms = (out.margin.square(), mask, out.loss, zero.loss, difference.square(), torch.ones_like(difference))
        self._sums.append(torch.stack([term.sum().float() for term in terms]) * counts)

    def record(self, trainer: Any) -> dict[str, float]:
        """The metrics, over all ranks, after one line in the log: a warning where they are not those of a start."""
        total = torch.stack(self._sums).sum(0)
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        squares, pairs, loss, expected, apart, groups = total.tolist()
        noise, loss, expected = math.sqrt(squares / max(1.0, pairs)), loss / groups, expected / groups
        if trainer.is_global_zero:
            _tell(noise, loss, expected, explained(loss - expected, apart / groups, groups, expected))
        return {"step0/margin_std": noise, "step0/loss": loss, "step0/expected_loss": expected}


def explained(difference: float, square: float, groups: float, expected: float) -> bool:
    """Whether noise explains that the loss differs so much from the expected one.

    Args:
        difference: mean over groups of the loss less the expected loss; `square`: mean of its square.
    """
    error = math.sqrt(max(0.0, square - difference**2) / max(1.0, groups - 1))
    return abs(difference) <= max(ERRORS * error, LOSS_NOISE * max(1.0, abs(expected)))


def _tell(noise: float, loss: float, expected: float, is_noise: bool) -> None:
    if noise > MARGIN_NOISE:
        log.warning(
            "align: at step 0 margins are %.3g away from 0 (standard deviation) and the loss is %.5g where margins of "
            "0 give %.5g, though policy and reference are the same: dropout, or rounding. In bf16 use "
            "hardware.rescore_reference=true or lower objective.beta",
            noise,
            loss,
            expected,
        )
    elif not is_noise:
        log.warning(
            "align: at step 0 the loss is %.5g where a policy that equals its reference has %.5g: more than noise "
            "explains. Score the reference again: recompute=[reference], or hardware.rescore_reference=true",
            loss,
            expected,
        )
    else:
        log.info(
            "align: at step 0 the loss is %.5g (where every margin is 0: %.5g), and margins are %.2g away from 0",
            loss,
            expected,
            noise,
        )
