"""Likelihood displacement: preference training that makes its own targets less likely (arXiv 2410.08847)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from selfcontrast.training.packed_module import Record

FRACTION, MIN_STEPS = 0.1, 5  # average over this last fraction of the steps, at least MIN_STEPS of them


@dataclass(frozen=True)
class Displacement:
    """The change in the targets' log-probability at the end of training.

    Attributes:
        change: mean over the last tenth of the steps (at least five) of log p_policy - log p_reference of a target, in
            nats per response. Each step measures its own prompts, before its update.
        significant: True if `change` is below 0 by more than twice its standard error over those steps. Steps are
            treated as independent, even if they share prompts over several epochs.
    """

    change: float
    significant: bool

    @classmethod
    def of(cls, history: Sequence[Record]) -> "Displacement":
        changes = [record["chosen_log_prob_change"] for record in history if "chosen_log_prob_change" in record]
        last = changes[-max(MIN_STEPS, math.ceil(FRACTION * len(changes))) :]
        change = statistics.fmean(last)
        error = statistics.stdev(last) / math.sqrt(len(last)) if len(last) > 1 else math.inf
        return cls(change, change + 2 * error < 0)
