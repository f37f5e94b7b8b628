"""The settings of an optimisation: schedules, weight decay, and what is refused."""

import sys
from typing import Any

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from selfcontrast.errors import UserError
from selfcontrast.training.modules import SupervisedFineTuning
from tiny import gpt2, hardware, optim


def test_without_bitsandbytes_the_fix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    optim(optimizer="adamw_8bit").check("trainer", hardware())
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    optim().check("trainer", hardware())
    with pytest.raises(UserError, match=r"^trainer\.optimizer=adamw_8bit needs bitsandbytes: pip install"):
        optim(optimizer="adamw_8bit").check("trainer", hardware())


def test_8_bit_moments_of_sharded_weights_are_refused() -> None:
    how = optim(optimizer="adamw_8bit")
    how.check("sft", hardware(devices=2, strategy="ddp"))
    with pytest.raises(UserError, match=r"^sft\.optimizer=adamw_8bit .* hardware\.strategy=ddp"):
        how.check("sft", hardware(devices=2, strategy="fsdp2"))


def test_the_cosine_is_transformers_with_a_warm_up_one_step_ahead() -> None:
    """transformers' first step has a learning rate of 0, and so is lost; ours reaches the peak one step earlier."""
    how, steps, warmup = optim(warmup_ratio=0.2), 20, 4
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    theirs = []
    for _ in range(steps):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = [how.lr_factor(step, steps) for step in range(steps)]
    assert ours[: warmup - 1] == pytest.approx(theirs[1:warmup])
    assert ours[warmup - 1] == 1
    assert ours[warmup:] == pytest.approx(theirs[warmup:])


def test_linear_and_constant_schedules_by_hand() -> None:
    linear, constant = optim(schedule="linear", warmup_ratio=0.2), optim(schedule="constant", warmup_ratio=0.0)
    assert [linear.lr_factor(step, 10) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1, 1, 0.5, 0.125])
    assert [constant.lr_factor(step, 3) for step in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_weight_decay_shrinks_matrices_and_nothing_else(optimizer: str) -> None:
    how = optim(weight_decay=0.5, optimizer=optimizer)
    module = SupervisedFineTuning(gpt2(0.0, width=64), how, 6, 7, lambda record: None)
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
def test_a_recipe_that_cannot_be(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        optim(**setting)
