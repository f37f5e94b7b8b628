"""The run over its steps: exact resumption, exact accumulation, the optimiser's settings."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from selfcontrast.errors import UserError
from selfcontrast.models.adapters import Adapter, NoAdapter
from selfcontrast.training import fit as fit_module
from selfcontrast.training import recipe as recipe_module
from selfcontrast.training import steps as steps_module
from selfcontrast.training.callbacks import damage
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.module import Record
from selfcontrast.training.modules import SelfContrastDPO, SupervisedFineTuning
from selfcontrast.training.recipe import Recipe
from selfcontrast.training.steps import Pass, Step
from tiny import gpt2, groups, hardware, llama, lora, recipe, self_contrast

SPEEDS = {"tokens_per_second", "prompts_per_second", "tflops", "mfu", "peak_memory_gib"}  # differ from run to run
TRAIN, VALIDATION = groups(10), groups(3, seed=1)


class Kill(Exception):
    pass


class Killed(SupervisedFineTuning):
    """Ends its training by an exception: before, amid or after the update of a step, or in a validation."""

    kill_at: tuple[str, int] = ("", -1)

    def training_step(self, step: Step, index: int) -> None:
        self._maybe("begin")
        super().training_step(step, index)
        self._maybe("end")

    def losses(self, part: Pass) -> Any:
        if self.trainer.validating:
            self._maybe("validation")
        found = super().losses(part)
        if self.trainer.training:
            self._maybe("forward")
        return found

    def _maybe(self, where: str) -> None:
        if (where, self.trainer.global_step) == self.kill_at:
            raise Kill


def trained(
    folder: Path,
    how: Recipe,
    kill_at: tuple[str, int] | None = None,
    policy: Any = None,
    report: Callable[[Record], None] = lambda record: None,
    snapshots: Sequence[int] = (),
    **machine: Any,
) -> tuple[dict[str, Tensor], list[Record]]:
    """Weights and history (less speeds) after a run, which goes on from what lies in `folder`."""
    policy = policy or gpt2(0.1)
    own = hardware(**machine)
    data = StepData(TRAIN, VALIDATION, how, own, seed=3)
    data.snapshots = snapshots
    prepare(policy, TRAIN, own)
    module = Killed(policy, how, len(data.steps()), own.logits_chunk, report)
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


def precise() -> Any:
    """A policy in float64. Adam divides a gradient by its own size, so that float32's rounding, which depends on the
    processor's kernels, may change a weight by as much as any gradient does."""
    return gpt2(0.0).double()


def assert_same_but_for_rounding(weights: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """Compare what `precise` became. Each weight moves by about lr = 1e-2 a step; a key's bias, whose gradient is
    rounding alone (1e-17, against Adam's eps of 1e-8), by 1e-11."""
    start = precise().state_dict()
    moved = {name: float((value - start[name]).abs().max()) for name, value in weights.items()}
    assert min(moved.values()) > 1e-2
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, atol=1e-9, rtol=1e-9)


def without_speeds(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in SPEEDS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[Record]]:
    """Six steps, a validation after each second one, never interrupted."""
    return trained(tmp_path_factory.mktemp("whole"), recipe(validations=3))


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(
    "kill_at",
    [("begin", 1), ("begin", 3), ("forward", 2), ("forward", 4), ("end", 4), ("end", 6), ("validation", 4)],
    ids=lambda at: f"{at[0]}{at[1]}",
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]], every: int, kill_at: tuple[str, int]
) -> None:
    trained(tmp_path, recipe(validations=3), kill_at, checkpoint_every=every)
    weights, history = trained(tmp_path, recipe(validations=3), checkpoint_every=every)
    assert history == whole[1]
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


def test_a_run_killed_when_all_steps_are_done_only_finishes(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]]
) -> None:
    trained(tmp_path, recipe(validations=3), ("validation", 6), checkpoint_every=5)
    weights, history = trained(tmp_path, recipe(validations=3), checkpoint_every=5)
    assert history == whole[1]
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


ELSEWISE: dict[str, tuple[Any, Recipe]] = {
    "LoRA": (lambda: lora(dropout=0.3).wrap(gpt2(0.1), seed=0), recipe()),
    "8-bit": (lambda: gpt2(0.1, width=64), recipe(optimizer="adamw_8bit")),  # wide enough for its blocks of 4096
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", ELSEWISE)
def test_a_killed_run_with_adapters_or_8_bit_moments_ends_as_if_it_had_not_been(
    tmp_path: Path, kind: str, every: int
) -> None:
    policy, how = ELSEWISE[kind]
    whole, records = trained(tmp_path / "whole", how, policy=policy())
    trained(tmp_path, how, ("forward", 3), policy=policy(), checkpoint_every=every)
    weights, history = trained(tmp_path, how, policy=policy(), checkpoint_every=every)
    assert history == records
    assert [record["step"] for record in history] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(weights[name], value) for name, value in whole.items())
    start = policy().state_dict()
    assert any(not torch.equal(start[name], value) for name, value in whole.items())


def test_a_checkpoint_holds_no_frozen_weight(tmp_path: Path) -> None:
    policy = lora().wrap(llama(), seed=0)
    trained(tmp_path, recipe(), ("end", 4), policy=policy, checkpoint_every=2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    trainable = {f"policy.{name}" for name, p in policy.named_parameters() if p.requires_grad}
    assert saved["state_dict"].keys() == trainable
    assert len(trainable) == 2 * 2 * 7  # A and B of seven layers in two blocks


def test_lora_trains_adapters_alone(tmp_path: Path) -> None:
    weights, _ = trained(tmp_path, recipe(), policy=lora().wrap(llama(), seed=0))
    start = lora().wrap(llama(), seed=0).state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert changed == {name for name in start if "lora_" in name}


def test_8_bit_moments_train_nearly_as_32_bit_ones(tmp_path: Path) -> None:
    """The moments are quantised, so the weights differ a little; they move as far."""
    start = gpt2(0.0, width=64).state_dict()
    moved = []
    for optimizer in ("adamw", "adamw_8bit"):
        how = recipe(optimizer=optimizer, lr=1e-3)
        weights, _ = trained(tmp_path / optimizer, how, policy=gpt2(0.0, width=64))
        moved.append(torch.cat([(weights[name] - start[name]).flatten() for name in start]))
    exact, quantised = moved
    assert not torch.equal(exact, quantised)
    assert float((exact - quantised).norm() / exact.norm()) < 0.3


def test_8_bit_moments_are_8_bit_ones() -> None:
    module = SupervisedFineTuning(gpt2(0.0, width=64), recipe(optimizer="adamw_8bit"), 6, 7, lambda record: None)
    (optimizer,), _ = module.configure_optimizers()
    for parameter in module.policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kinds = {p.numel() >= 4096: state["state1"].dtype for p, state in optimizer.state.items()}
    assert kinds == {True: torch.uint8, False: torch.float32}


def test_without_bitsandbytes_the_fix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(optimizer="adamw_8bit").check("trainer", hardware())
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    recipe().check("trainer", hardware())
    with pytest.raises(UserError, match=r"^trainer\.optimizer=adamw_8bit needs bitsandbytes: pip install"):
        recipe(optimizer="adamw_8bit").check("trainer", hardware())


def test_8_bit_moments_of_sharded_weights_are_refused() -> None:
    how = recipe(optimizer="adamw_8bit")
    how.check("sft", hardware(devices=2, strategy="ddp"))
    with pytest.raises(UserError, match=r"^sft\.optimizer=adamw_8bit .* hardware\.strategy=ddp"):
        how.check("sft", hardware(devices=2, strategy="fsdp2"))


def test_the_resumed_run_tells_the_steps_before_its_checkpoint_and_takes_those_after(tmp_path: Path) -> None:
    trained(tmp_path, recipe(), ("end", 6), checkpoint_every=2)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    told: list[Record] = []
    _, history = trained(tmp_path, recipe(), report=told.append, checkpoint_every=2)
    assert [record["step"] for record in told] == [1, 2, 3, 4, 5, 6]  # a tracker has the whole curve
    assert [record["step"] for record in history] == [1, 2, 3, 4, 5, 6]


def test_validation_does_not_change_training(tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]]) -> None:
    weights, history = trained(tmp_path, recipe())
    assert history == [record for record in whole[1] if "loss" in record]
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


def test_validations_are_spread_over_the_run(whole: tuple[dict[str, Tensor], list[Record]]) -> None:
    assert [record["step"] for record in whole[1] if "val_loss" in record] == [2, 4, 6]


def test_dropout_is_on_in_training(tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]]) -> None:
    _, history = trained(tmp_path, recipe(), policy=gpt2(0.0))
    assert history[0]["loss"] != next(r for r in whole[1] if "loss" in r)["loss"]


def test_how_a_step_falls_into_passes_does_not_change_it(tmp_path: Path) -> None:
    small, _ = trained(tmp_path / "small", recipe(), policy=precise(), tokens_per_pass=1)
    large, _ = trained(tmp_path / "large", recipe(), policy=precise(), tokens_per_pass=10**6)
    assert_same_but_for_rounding(large, small)


@pytest.mark.parametrize(
    ("strategy", "adapter"), [("ddp", NoAdapter()), ("fsdp2", NoAdapter()), ("fsdp2", lora(dropout=0.0))]
)
@pytest.mark.filterwarnings("ignore")
def test_two_ranks_train_as_one_does(tmp_path: Path, strategy: str, adapter: Adapter) -> None:
    """Steps of three groups, and of one; a validation of one: ranks have unequal parts, and nothing at times."""
    how, rows, held_out = recipe(prompts_per_step=3, validations=2), groups(7), groups(1, seed=1)
    found = []
    for ranks in (1, 2):
        own = hardware(devices=ranks, strategy=strategy, tokens_per_pass=20)
        policy, told = adapter.wrap(precise(), seed=0).double(), list[Record]()
        data = StepData(rows, held_out, how, own, seed=3)
        prepare(policy, rows, own)
        module = SupervisedFineTuning(policy, how, len(data.steps()), own.logits_chunk, told.append)
        assert fit(module, data, tmp_path / str(ranks), "test")
        assert told == module.history
        found.append((policy.state_dict(), [without_speeds(record) for record in told]))
    (alone, records), (shared, same_records) = found
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, atol=1e-9, rtol=1e-9)
    assert len(records) == len(same_records) == 6 + 2
    for record, same in zip(records, same_records, strict=True):
        assert same == pytest.approx(record, abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_metrics_by_rank_of_similarity_are_the_same_over_two_processes(tmp_path: Path) -> None:
    """Only one group has a third negative, so one process never sees the column."""
    rows = [
        replace(group, negatives=group.negatives[:count])
        for group, count in zip(groups(6, negatives=3), (1, 2, 1, 3, 2, 1), strict=True)
    ]
    objective = self_contrast(0.1)
    stored = {group.id: torch.full((1 + len(group.negatives),), -9.0) for group in rows}
    how, found = recipe(prompts_per_step=3), []
    for ranks in (1, 2):
        own = hardware(devices=ranks, tokens_per_pass=20)
        policy, told = precise(), list[Record]()
        data = StepData(rows, [], how, own, seed=3)
        prepare(policy, rows, own)
        module = SelfContrastDPO(policy, how, len(data.steps()), own.logits_chunk, told.append, objective, stored)
        assert fit(module, data, tmp_path / str(ranks), "test")
        found.append([without_speeds(record) for record in told])
    third = [record["step"] for record in found[0] if "margin_rank_3" in record]
    assert len(third) == 2  # once an epoch
    for record, same in zip(*found, strict=True):
        assert same == pytest.approx(record, abs=1e-4)


def test_rows_without_sharing_train_the_same_and_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, how, own = groups(6, negatives=2), recipe(prompts_per_step=3), hardware(tokens_per_pass=60)
    objective = self_contrast(0.1)
    stored = {group.id: torch.full((3,), -9.0) for group in rows}
    found, told = [], []
    for least in (1.0, 100.0):
        monkeypatch.setattr(steps_module, "SHARING_PAYS", least)
        policy, data = precise(), StepData(rows, [], how, own, seed=3)
        prepare(policy, rows, own)
        module = SelfContrastDPO(policy, how, len(data.steps()), 7, lambda record: None, objective, stored)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert fit(module, data, tmp_path / str(least), "align")
        found.append(policy.state_dict())
        told.append([m for m in caplog.messages if "every response has a prompt of its own" in m])
    assert [len(messages) for messages in told] == [0, 1]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-9, rtol=1e-9)


def test_a_gpu_checks_a_model_by_the_way_that_has_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit_module._checked_attention(hardware(attention="blocks"), sharded=False) == "blocks"
    monkeypatch.setattr(recipe_module, "_gpus", lambda: 1)
    own = hardware(accelerator="gpu", precision="bf16-mixed")
    assert fit_module._checked_attention(own, sharded=False) == "masked"
    assert fit_module._checked_attention(own, sharded=True) == "auto"  # on the CPU


def test_what_a_step_costs_is_told(tmp_path: Path) -> None:
    policy, own = llama(), hardware(peak_tflops=0.5)
    data = StepData(TRAIN, [], recipe(), own, seed=3)
    prepare(policy, TRAIN, own)
    module = SupervisedFineTuning(policy, recipe(), len(data.steps()), 7, lambda record: None)
    fit(module, data, tmp_path, "test")
    for number, record in enumerate(module.history):
        passes = [part.packed for part in data.steps()[number].passes]
        tokens = sum(packed.input_ids.numel() for packed in passes)
        flops = sum(float(module.cost.flops(packed)) for packed in passes)
        seconds = tokens / record["tokens_per_second"]
        assert record["tflops"] == pytest.approx(flops / seconds / 1e12)
        assert record["mfu"] == pytest.approx(2 * record["tflops"])
        assert 0.05 < record["peak_memory_gib"] < 64


def test_an_unusable_loss_names_its_group_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    class Poisoned(SupervisedFineTuning):
        def losses(self, part: Pass) -> Any:
            loss, sums = super().losses(part)
            if (
                self.trainer.global_step == 3
                and (bad := part.packed.ids.index(name) if name in part.packed.ids else -1) >= 0
            ):
                loss = loss * torch.where(torch.arange(len(loss)) == bad, torch.nan, 1.0)
            return loss, sums

    policy, own = gpt2(0.1), hardware(checkpoint_every=2)
    data = StepData(TRAIN, [], recipe(), own, seed=3)
    name = TRAIN[data.steps().indices(3)[1]].id
    prepare(policy, TRAIN, own)
    module = Poisoned(policy, recipe(), len(data.steps()), own.logits_chunk, lambda record: None)
    with pytest.raises(UserError, match=rf"step 3: the loss of {name} is NaN"):
        fit(module, data, tmp_path, "test")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert all(bool(value.isfinite().all()) for value in policy.state_dict().values())


def test_the_cosine_is_transformers_with_a_warm_up_one_step_ahead() -> None:
    """transformers' first step has a learning rate of 0, and so is lost; ours reaches the peak one step earlier."""
    how, steps, warmup = recipe(warmup=0.2), 20, 4
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
    linear, constant = recipe(schedule="linear", warmup=0.2), recipe(schedule="constant", warmup=0.0)
    assert [linear.lr_factor(step, 10) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1, 1, 0.5, 0.125])
    assert [constant.lr_factor(step, 3) for step in range(3)] == [1, 1, 1]


def test_the_learning_rate_used_is_the_schedules(whole: tuple[dict[str, Tensor], list[Record]]) -> None:
    used = [record["lr"] for record in whole[1] if "lr" in record]
    assert used == pytest.approx([1e-2 * recipe().lr_factor(step, 6) for step in range(6)])


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_weight_decay_shrinks_matrices_and_nothing_else(optimizer: str) -> None:
    how = recipe(weight_decay=0.5, optimizer=optimizer)
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
        {"warmup": 1.0},
        {"betas": [0.9]},
        {"clip_norm": -1.0},
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        recipe(**setting)


@pytest.mark.parametrize(
    "setting",
    [{"devices": 0}, {"tokens_per_pass": 0}, {"peak_tflops": 0.0}, {"accelerator": "tpu"}, {"precision": "16-mixed"}],
    ids=str,
)
def test_hardware_that_cannot_be(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        hardware(**setting)


def test_fit_flipped_cut_or_empty_checkpoint_is_reported_and_the_weights_are_the_same(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]], caplog: pytest.LogCaptureFixture
) -> None:
    """torch.load takes a flipped byte for a weight, and a cut file ended in a traceback at every further run."""
    trained(tmp_path, recipe(validations=3), ("begin", 5), checkpoint_every=2)
    last = tmp_path / "last.ckpt"
    good = last.read_bytes()
    damages = [good[:at] + bytes([good[at] ^ 64]) + good[at + 1 :] for at in (len(good) // 3, len(good) // 2)]
    for number, data in enumerate([*damages, good[: len(good) // 2], b""], start=1):
        last.write_bytes(data)
        weights, history = trained(tmp_path, recipe(validations=3), checkpoint_every=100)
        assert history == whole[1]
        assert all(torch.equal(weights[name], value) for name, value in whole[0].items())
        told = [record.getMessage() for record in caplog.records if "last.ckpt is damaged (" in record.getMessage()]
        assert len(told) == number
        assert told[-1].endswith("); training again from the first step")
        assert "\n" not in told[-1]
        assert not last.exists()


def test_fit_full_disk_leaves_no_half_written_checkpoint(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half would keep the next attempt from its space. So would that of an attempt that was killed."""
    save, saved = Trainer.save_checkpoint, []

    def full(trainer: Trainer, file: Path) -> None:
        assert not file.exists()
        saved.append(file)
        save(trainer, file)
        if len(saved) > 1:
            file.write_bytes(file.read_bytes()[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    (tmp_path / "last.writing").write_bytes(b"of an attempt that was killed")
    with pytest.raises(OSError, match="No space left"):
        trained(tmp_path, recipe(validations=3), checkpoint_every=2)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    weights, history = trained(tmp_path, recipe(validations=3), checkpoint_every=2)
    assert history == whole[1]
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


def test_checkpoint_any_flipped_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    trained(tmp_path, recipe(validations=3), ("begin", 3), checkpoint_every=2)
    last = tmp_path / "last.ckpt"
    good, state = last.read_bytes(), torch.load(last, weights_only=True)["state_dict"]
    for at in range(0, len(good), max(1, len(good) // 300)):
        last.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        if not damage(last):  # the space between records, which fills them up to a multiple of 64 bytes
            found = torch.load(last, weights_only=True)["state_dict"]
            assert all(torch.equal(found[name], value) for name, value in state.items()), at
