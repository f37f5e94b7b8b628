"""What the trainings of a job have beside their data and their model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from selfcontrast.models.adapters import Adapter
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.optim import OptimConfig


@dataclass(frozen=True)
class Training:
    """
    Attributes:
        report: is called with every record of metrics as it is made.
        checkpoints: evenly spaced steps of preference training, of which all but the last, which is the policy's, leave
            a policy of their own.
    """

    adapter: Adapter
    optim: OptimConfig
    hardware: Hardware
    seed: int
    report: Callable[[Mapping[str, float]], None]
    checkpoints: int = 0
