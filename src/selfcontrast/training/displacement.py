"""Likelihood displacement: preference training that makes its own targets less likely (arXiv 2410.08847)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from selfcontrast.training.module import Record

SHARE, FEWEST = 0.1, 5  # of the steps that are looked at, the last ones


@dataclass(frozen=True)
class Displacement:
    """How far targets have moved from the reference at the end of training.

    Attributes:
        change: mean over the last tenth of the steps (five at least) of log p_policy - log p_reference of a target,
            in nats per response; each step has prompts of its own, seen before its update.
        clear: whether it is below 0 by more than twice its standard error over those steps. Steps that share
            prompts, as in several epochs, are taken for independent.
    """

    change: float
    clear: bool

    @classmethod
    def of(cls, history: Sequence[Record]) -> "Displacement":
        changes = [record["chosen_log_prob_change"] for record in history if "chosen_log_prob_change" in record]
        last = changes[-max(FEWEST, math.ceil(SHARE * len(changes))) :]
        change = statistics.fmean(last)
        error = statistics.stdev(last) / math.sqrt(len(last)) if len(last) > 1 else math.inf
        return cls(change, change + 2 * error < 0)
