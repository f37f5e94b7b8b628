"""The optimisation settings of a training stage."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from pydantic import Field

from selfcontrast.constrained import BelowOne, Count, NonNegative, Positive, WholeNumber, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.training.hardware import Hardware

OPTIMIZERS = ("adamw", "adamw_8bit")
SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation settings, all of which change the result.

    Attributes:
        tokens: a budget of packed tokens (a prompt once, each response once) instead of `epochs`; None for epochs.
    """

    optimizer: str
    lr: Annotated[Positive, Field(le=100)]
    epochs: Annotated[WholeNumber, Field(le=1_000_000)]
    tokens: Annotated[int, Field(ge=1, le=2**53)] | None
    batch_size: Count
    max_length: Count
    schedule: str
    warmup_ratio: BelowOne
    weight_decay: Annotated[NonNegative, Field(le=100)]
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)]
    max_grad_norm: Positive
    validations: WholeNumber

    def __post_init__(self) -> None:
        check_numbers(self, "")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer={self.optimizer} is unknown. Use one of {', '.join(OPTIMIZERS)}.")
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule={self.schedule} is unknown. Use one of {', '.join(SCHEDULES)}.")

    def check(self, name: str, hardware: Hardware) -> None:
        """Raise `UserError` if these settings, called `name` in the config, cannot be used on this hardware."""
        if self.epochs == 0 and name == "trainer":
            raise UserError("trainer.epochs=0 is below 1. Raise it, or set iterations=0 to skip preference training.")
        if self.optimizer != "adamw_8bit":
            return
        if hardware.strategy == "fsdp2" and hardware.devices * hardware.num_nodes > 1:
            raise UserError(
                f"{name}.optimizer=adamw_8bit cannot update sharded weights. Use hardware.strategy=ddp, "
                f"or {name}.optimizer=adamw."
            )
        if find_spec("bitsandbytes") is None:
            raise UserError(
                f"{name}.optimizer=adamw_8bit needs bitsandbytes. Run pip install -e '.[8bit]', "
                f"or use {name}.optimizer=adamw."
            )

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the factor of `lr` at `step` of `steps`: linear warm-up, then the schedule."""
        warmup = round(self.warmup_ratio * steps)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress if self.schedule == "linear" else 1.0
