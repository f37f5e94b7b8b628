"""Train with compiled layers and the real compiler. The result is the same, also after a resume."""

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


def trained(folder: Path, machine: Hardware, module: type[SupervisedFineTuning]) -> dict[str, Tensor]:
    policy = llama(vocabulary=50)
    data = StepData(TRAIN, [], optim(), machine, seed=3)
    prepare(policy, TRAIN, machine)
    try:
        fit(module(policy, optim(), len(data.steps()), machine.logits_chunk, lambda _: None), data, folder, "test")
    except Kill:
        assert module is KilledAtStep3
    return {name: value.clone() for name, value in policy.state_dict().items()}


def test_fit_with_compiled_layers_gives_the_same_weights_and_resumes_exactly(tmp_path: Path) -> None:
    machine = hardware(compile=True, checkpoint_every=2)
    compiled = trained(tmp_path / "whole", machine, SupervisedFineTuning)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for name, value in trained(tmp_path / "plain", hardware(), SupervisedFineTuning).items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-4)  # weights move by 0.05 at this rate
    trained(tmp_path / "killed", machine, KilledAtStep3)
    torch._dynamo.reset()  # the state of a new process
    resumed = trained(tmp_path / "killed", machine, SupervisedFineTuning)
    assert all(torch.equal(resumed[name], value) for name, value in compiled.items())
