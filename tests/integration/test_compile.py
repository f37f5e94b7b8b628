"""Train with layers that the real compiler compiled. The weights equal those of plain layers, also after a resume."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.sft import SupervisedFineTuning
from selfcontrast.training.steps import Step
from tiny import groups, hardware, llama, optim

pytestmark = pytest.mark.slow

TRAIN = groups(10)


class Kill(Exception):
    pass


class KilledAtStep3(SupervisedFineTuning):
    def training_step(self, step: Step, index: int) -> None:
        if self.trainer.global_step == 3:
            raise Kill
        super().training_step(step, index)


def fit_weights(folder: Path, hardware_config: Hardware, module: type[SupervisedFineTuning]) -> dict[str, Tensor]:
    policy = llama(vocabulary=50)
    data = StepData(TRAIN, [], optim(), hardware_config, seed=3)
    prepare(policy, TRAIN, hardware_config)
    try:
        fit(
            module(policy, optim(), len(data.steps()), hardware_config.logits_chunk, lambda _: None),
            data,
            folder,
            "test",
        )
    except Kill:
        assert module is KilledAtStep3
    return {name: value.clone() for name, value in policy.state_dict().items()}


def test_fit_with_compiled_layers_gives_the_same_weights_and_resumes_exactly(tmp_path: Path) -> None:
    hardware_config = hardware(compile=True, checkpoint_every=2)
    compiled = fit_weights(tmp_path / "whole", hardware_config, SupervisedFineTuning)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for name, value in fit_weights(tmp_path / "plain", hardware(), SupervisedFineTuning).items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-4)  # training moves weights by 0.05
    fit_weights(tmp_path / "killed", hardware_config, KilledAtStep3)
    torch._dynamo.reset()  # the state of a new process
    resumed = fit_weights(tmp_path / "killed", hardware_config, SupervisedFineTuning)
    assert all(torch.equal(resumed[name], value) for name, value in compiled.items())
