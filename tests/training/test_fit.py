"""The run over its steps: exact resumption, exact accumulation, the optimiser's settings."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import TRAIN, trained, without_speeds
from torch import Tensor

from selfcontrast.errors import UserError
from selfcontrast.models.adapters import Adapter, NoAdapter
from selfcontrast.objectives import DFT, SWEPO, Objective, Signals
from selfcontrast.training import fit as fit_module
from selfcontrast.training import hardware as hardware_module
from selfcontrast.training import steps as steps_module
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import Stored
from selfcontrast.training.module import Record
from selfcontrast.training.modules import SelfContrastDPO, SupervisedFineTuning
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.steps import MicroBatch
from tiny import gpt2, groups, hardware, llama, lora, optim, self_contrast


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


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(
    "kill_at",
    [("begin", 1), ("begin", 3), ("forward", 2), ("forward", 4), ("end", 4), ("end", 6), ("validation", 4)],
    ids=lambda at: f"{at[0]}{at[1]}",
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]], every: int, kill_at: tuple[str, int]
) -> None:
    trained(tmp_path, optim(validations=3), kill_at, checkpoint_every=every)
    weights, history = trained(tmp_path, optim(validations=3), checkpoint_every=every)
    assert history == whole[1]
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


def test_a_run_killed_when_all_steps_are_done_only_finishes(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]]
) -> None:
    trained(tmp_path, optim(validations=3), ("validation", 6), checkpoint_every=5)
    weights, history = trained(tmp_path, optim(validations=3), checkpoint_every=5)
    assert history == whole[1]
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


ELSEWISE: dict[str, tuple[Any, OptimConfig]] = {
    "LoRA": (lambda: lora(dropout=0.3).wrap(gpt2(0.1), seed=0), optim()),
    "8-bit": (lambda: gpt2(0.1, width=64), optim(optimizer="adamw_8bit")),  # wide enough for its blocks of 4096
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


def test_lora_trains_adapters_alone(tmp_path: Path) -> None:
    weights, _ = trained(tmp_path, optim(), policy=lora().wrap(llama(), seed=0))
    start = lora().wrap(llama(), seed=0).state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert changed == {name for name in start if "lora_" in name}


def test_8_bit_moments_train_nearly_as_32_bit_ones(tmp_path: Path) -> None:
    """The moments are quantised, so the weights differ a little; they move as far."""
    start = gpt2(0.0, width=64).state_dict()
    moved = []
    for optimizer in ("adamw", "adamw_8bit"):
        how = optim(optimizer=optimizer, lr=1e-3)
        weights, _ = trained(tmp_path / optimizer, how, policy=gpt2(0.0, width=64))
        moved.append(torch.cat([(weights[name] - start[name]).flatten() for name in start]))
    exact, quantised = moved
    assert not torch.equal(exact, quantised)
    assert float((exact - quantised).norm() / exact.norm()) < 0.3


def test_8_bit_moments_are_8_bit_ones() -> None:
    module = SupervisedFineTuning(gpt2(0.0, width=64), optim(optimizer="adamw_8bit"), 6, 7, lambda record: None)
    (optimizer,), _ = module.configure_optimizers()
    for parameter in module.policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kinds = {p.numel() >= 4096: state["state1"].dtype for p, state in optimizer.state.items()}
    assert kinds == {True: torch.uint8, False: torch.float32}


def test_the_resumed_run_tells_the_steps_before_its_checkpoint_and_takes_those_after(tmp_path: Path) -> None:
    trained(tmp_path, optim(), ("end", 6), checkpoint_every=2)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    told: list[Record] = []
    _, history = trained(tmp_path, optim(), report=told.append, checkpoint_every=2)
    assert [record["step"] for record in told] == [1, 2, 3, 4, 5, 6]  # a tracker has the whole curve
    assert [record["step"] for record in history] == [1, 2, 3, 4, 5, 6]


def test_validation_does_not_change_training(tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]]) -> None:
    weights, history = trained(tmp_path, optim())
    assert history == [record for record in whole[1] if "loss" in record]
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


def test_validations_are_spread_over_the_run(whole: tuple[dict[str, Tensor], list[Record]]) -> None:
    assert [record["step"] for record in whole[1] if "val_loss" in record] == [2, 4, 6]


def test_dropout_is_on_in_training(tmp_path: Path, whole: tuple[dict[str, Tensor], list[Record]]) -> None:
    _, history = trained(tmp_path, optim(), policy=gpt2(0.0))
    assert history[0]["loss"] != next(r for r in whole[1] if "loss" in r)["loss"]


def test_how_a_step_falls_into_passes_does_not_change_it(tmp_path: Path) -> None:
    small, _ = trained(tmp_path / "small", optim(), policy=precise(), max_tokens_per_microbatch=1)
    large, _ = trained(tmp_path / "large", optim(), policy=precise(), max_tokens_per_microbatch=10**6)
    assert_same_but_for_rounding(large, small)


@pytest.mark.parametrize(
    ("strategy", "adapter"), [("ddp", NoAdapter()), ("fsdp2", NoAdapter()), ("fsdp2", lora(dropout=0.0))]
)
@pytest.mark.filterwarnings("ignore")
def test_two_ranks_train_as_one_does(tmp_path: Path, strategy: str, adapter: Adapter) -> None:
    """Steps of three groups, and of one; a validation of one: ranks have unequal parts, and nothing at times."""
    how, rows, held_out = optim(batch_size=3, validations=2), groups(7), groups(1, seed=1)
    found = []
    for ranks in (1, 2):
        own = hardware(devices=ranks, strategy=strategy, max_tokens_per_microbatch=20)
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


SCORED = SWEPO(beta=0.1, alpha=1.0, power=1, nll_weight=0.0, length_normalised=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("objective", [self_contrast(0.1), SCORED, DFT(tau=1.0)], ids=["pairs", "scores", "sampler"])
def test_metrics_by_rank_of_similarity_are_the_same_over_two_processes(tmp_path: Path, objective: Objective) -> None:
    """Only one group has a third negative, so one process never sees the column."""
    rows = [
        replace(group, negatives=group.negatives[:count])
        for group, count in zip(groups(6, negatives=3), (1, 2, 1, 3, 2, 1), strict=True)
    ]
    torch.manual_seed(0)
    sizes = {group.id: len(group.negatives) for group in rows}
    reference = {name: torch.full((1 + count,), -9.0) for name, count in sizes.items()}
    signals = {name: Signals(torch.rand(1 + count), -9 * torch.rand(count)) for name, count in sizes.items()}
    stored = Stored(reference, signals)
    how, found = optim(batch_size=3), []
    for ranks in (1, 2):
        own = hardware(devices=ranks, max_tokens_per_microbatch=20)
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
    rows, how, own = groups(6, negatives=2), optim(batch_size=3), hardware(max_tokens_per_microbatch=60)
    objective = self_contrast(0.1)
    stored = {group.id: torch.full((3,), -9.0) for group in rows}
    found, told = [], []
    for least in (1.0, 100.0):
        monkeypatch.setattr(steps_module, "SHARING_PAYS", least)
        policy, data = precise(), StepData(rows, [], how, own, seed=3)
        prepare(policy, rows, own)
        module = SelfContrastDPO(policy, how, len(data.steps()), 7, lambda record: None, objective, Stored(stored))
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
    monkeypatch.setattr(hardware_module, "_gpus", lambda: 1)
    own = hardware(accelerator="gpu", precision="bf16-mixed")
    assert fit_module._checked_attention(own, sharded=False) == "masked"
    assert fit_module._checked_attention(own, sharded=True) == "auto"  # on the CPU


def test_what_a_step_costs_is_told(tmp_path: Path) -> None:
    policy, own = llama(), hardware(peak_tflops=0.5)
    data = StepData(TRAIN, [], optim(), own, seed=3)
    prepare(policy, TRAIN, own)
    module = SupervisedFineTuning(policy, optim(), len(data.steps()), 7, lambda record: None)
    fit(module, data, tmp_path, "test")
    for number, record in enumerate(module.history):
        microbatches = [part.packed for part in data.steps()[number].microbatches]
        tokens = sum(packed.input_ids.numel() for packed in microbatches)
        flops = sum(float(module.cost.flops(packed)) for packed in microbatches)
        seconds = tokens / record["tokens_per_second"]
        assert record["tflops"] == pytest.approx(flops / seconds / 1e12)
        assert record["mfu"] == pytest.approx(2 * record["tflops"])
        assert 0.05 < record["peak_memory_gib"] < 64


def test_an_unusable_loss_names_its_group_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    class Poisoned(SupervisedFineTuning):
        def losses(self, part: MicroBatch) -> Any:
            loss, sums = super().losses(part)
            if (
                self.trainer.global_step == 3
                and (bad := part.packed.ids.index(name) if name in part.packed.ids else -1) >= 0
            ):
                loss = loss * torch.where(torch.arange(len(loss)) == bad, torch.nan, 1.0)
            return loss, sums

    policy, own = gpt2(0.1), hardware(checkpoint_every=2)
    data = StepData(TRAIN, [], optim(), own, seed=3)
    name = TRAIN[data.steps().indices(3)[1]].id
    prepare(policy, TRAIN, own)
    module = Poisoned(policy, optim(), len(data.steps()), own.logits_chunk, lambda record: None)
    with pytest.raises(UserError, match=rf"step 3: the loss of {name} is NaN"):
        fit(module, data, tmp_path, "test")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert all(bool(value.isfinite().all()) for value in policy.state_dict().values())


def test_the_learning_rate_used_is_the_schedules(whole: tuple[dict[str, Tensor], list[Record]]) -> None:
    used = [record["lr"] for record in whole[1] if "lr" in record]
    assert used == pytest.approx([1e-2 * optim().lr_factor(step, 6) for step in range(6)])
