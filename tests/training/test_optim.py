"""Test optimisation settings: schedules, weight decay, and refused values."""

import sys
from typing import Any

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from selfcontrast.errors import UserError
from selfcontrast.training.sft import SupervisedFineTuning
from tiny import gpt2, hardware, optim


def test_optim_config_8_bit_without_bitsandbytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    optim(optimizer="adamw_8bit").check("trainer", hardware())
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    optim().check("trainer", hardware())
    with pytest.raises(UserError, match=r"^trainer\.optimizer=adamw_8bit.*bitsandbytes"):
        optim(optimizer="adamw_8bit").check("trainer", hardware())


def test_optim_config_8_bit_with_fsdp2_is_refused() -> None:
    settings = optim(optimizer="adamw_8bit")
    settings.check("sft", hardware(devices=2, strategy="ddp"))
    with pytest.raises(UserError, match=r"^sft\.optimizer=adamw_8bit .*hardware\.strategy=ddp"):
        settings.check("sft", hardware(devices=2, strategy="fsdp2"))


def test_lr_factor_cosine_is_transformers_one_warmup_step_ahead() -> None:
    """In transformers the first step has a learning rate of 0. `lr_factor` reaches the peak one step earlier."""
    settings, steps, warmup = optim(warmup_ratio=0.2), 20, 4
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    expected = []
    for _ in range(steps):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    factors = [settings.lr_factor(step, steps) for step in range(steps)]
    assert factors[: warmup - 1] == pytest.approx(expected[1:warmup])
    assert factors[warmup - 1] == 1
    assert factors[warmup:] == pytest.approx(expected[warmup:])


def test_lr_factor_linear_and_constant_equal_hand_computation() -> None:
    linear, constant = optim(schedule="linear", warmup_ratio=0.2), optim(schedule="constant", warmup_ratio=0.0)
    assert [linear.lr_factor(step, 10) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1, 1, 0.5, 0.125])
    assert [constant.lr_factor(step, 3) for step in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_adamw_weight_decay_shrinks_only_matrices(optimizer: str) -> None:
    settings = optim(weight_decay=0.5, optimizer=optimizer)
    module = SupervisedFineTuning(gpt2(0.0, width=64), settings, 6, 7, lambda record: None)
    (optimizer_,), _ = module.configure_optimizers()
    before = {name: value.detach().clone() for name, value in module.policy.named_parameters()}
    for parameter in module.policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    lr = optimizer_.param_groups[0]["lr"]
    optimizer_.step()
    for name, value in module.policy.named_parameters():
        factor = 1 - lr * 0.5 if value.ndim >= 2 else 1.0
        torch.testing.assert_close(value.detach(), before[name] * factor)


@pytest.mark.parametrize(
    "setting",
    [
        {"optimizer": "sgd"},
        {"schedule": "square"},
        {"lr": 0.0},
        {"epochs": -1},
        {"warmup_ratio": 1.0},
        {"betas": [0.9]},
        {"max_grad_norm": -1.0},
    ],
    ids=str,
)
def test_optim_config_invalid_setting_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        optim(**setting)
