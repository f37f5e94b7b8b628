"""The settings of one training stage, without its data and model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from selfcontrast.models.adapters import Adapter
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.optim import OptimConfig


@dataclass(frozen=True)
class Training:
    """The settings of one training stage.

    Attributes:
        report: called with each new record of metrics.
        checkpoints: number of evenly spaced checkpoints of preference training. The last one is the final policy; each
            other one is saved as a separate policy.
    """

    adapter: Adapter
    optim: OptimConfig
    hardware: Hardware
    seed: int
    report: Callable[[Mapping[str, float]], None]
    checkpoints: int = 0
