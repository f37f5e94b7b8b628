"""Train a small policy, and kill the training at any point."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfcontrast.training.callbacks import damage
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.packed_module import Record
from selfcontrast.training.sft import SupervisedFineTuning
from selfcontrast.training.steps import MicroBatch, Step
from tiny import gpt2, groups, hardware

SPEEDS = {"tokens_per_second", "prompts_per_second", "tflops", "mfu", "peak_memory_gib"}  # differ from run to run
TRAIN, VALIDATION = groups(10), groups(3, seed=1)


class Kill(Exception):
    pass


class KilledTraining(SupervisedFineTuning):
    """A training run that an exception ends: before, during or after a step, or in a validation."""

    kill_at: tuple[str, int] = ("", -1)

    def training_step(self, step: Step, index: int) -> None:
        self._kill_if("begin")
        super().training_step(step, index)
        self._kill_if("end")

    def losses(self, microbatch: MicroBatch) -> Any:
        if self.trainer.validating:
            self._kill_if("validation")
        output = super().losses(microbatch)
        if self.trainer.training:
            self._kill_if("forward")
        return output

    def _kill_if(self, point: str) -> None:
        if (point, self.trainer.global_step) == self.kill_at:
            raise Kill


def run_training(
    folder: Path,
    settings: OptimConfig,
    kill_at: tuple[str, int] | None = None,
    policy: Any = None,
    report: Callable[[Record], None] = lambda record: None,
    snapshots: Sequence[int] = (),
    **options: Any,
) -> tuple[dict[str, Tensor], list[Record]]:
    """Train, resuming from a checkpoint in `folder`. Return weights, and history without speeds."""
    policy = policy or gpt2(0.1)
    hardware_config = hardware(**options)
    data = StepData(TRAIN, VALIDATION, settings, hardware_config, seed=3)
    data.snapshots = snapshots
    prepare(policy, TRAIN, hardware_config)
    module = KilledTraining(policy, settings, len(data.steps()), hardware_config.logits_chunk, report)
    module.kill_at = kill_at or ("", -1)
    if kill_at:
        torch.manual_seed(7)
        with pytest.raises(Kill):
            fit(module, data, folder, "test")
    else:
        torch.manual_seed(8 if (folder / "last.ckpt").exists() and not damage(folder / "last.ckpt") else 7)
        fit(module, data, folder, "test")
    history = [without_speeds(record) for record in module.history]
    return {name: value.clone() for name, value in policy.state_dict().items()}, history


def without_speeds(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in SPEEDS}
