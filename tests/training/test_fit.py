"""Test training runs: exact resumption, exact accumulation, optimiser settings."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import TRAIN, run_training, without_speeds
from torch import Tensor

from selfcontrast.errors import UserError
from selfcontrast.models.adapters import Adapter, NoAdapter
from selfcontrast.objectives import DFT, SWEPO, Objective, Signals
from selfcontrast.training import fit as fit_module
from selfcontrast.training import hardware as hardware_module
from selfcontrast.training import steps as steps_module
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.packed_module import Record
from selfcontrast.training.sft import SupervisedFineTuning
from selfcontrast.training.steps import MicroBatch
from tiny import gpt2, groups, hardware, llama, lora, optim, self_contrast


def float64_policy() -> Any:
    """Return a policy in float64.

    Adam divides a gradient by its size. So in float32, rounding can change a weight as much as a real gradient does,
    and rounding depends on the processor's kernels.
    """
    return gpt2(0.0).double()


def assert_equal_up_to_rounding(weights: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """Compare trained float64 policies.

    Weights move by about lr = 1e-2 per step. The bias of attention keys moves by only 1e-11, because its gradient is
    pure rounding: 1e-17, far below Adam's eps of 1e-8.
    """
    start = float64_policy().state_dict()
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
def test_fit_killed_and_resumed_is_bit_equal(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], list[Record]], every: int, kill_at: tuple[str, int]
) -> None:
    run_training(tmp_path, optim(validations=3), kill_at, checkpoint_every=every)
    weights, history = run_training(tmp_path, optim(validations=3), checkpoint_every=every)
    assert history == uninterrupted[1]
    assert all(torch.equal(weights[name], value) for name, value in uninterrupted[0].items())


def test_fit_killed_after_last_step_is_bit_equal(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], list[Record]]
) -> None:
    run_training(tmp_path, optim(validations=3), ("validation", 6), checkpoint_every=5)
    weights, history = run_training(tmp_path, optim(validations=3), checkpoint_every=5)
    assert history == uninterrupted[1]
    assert all(torch.equal(weights[name], value) for name, value in uninterrupted[0].items())


VARIANTS: dict[str, tuple[Any, OptimConfig]] = {
    "LoRA": (lambda: lora(dropout=0.3).wrap(gpt2(0.1), seed=0), optim()),
    "8-bit": (lambda: gpt2(0.1, width=64), optim(optimizer="adamw_8bit")),  # 8-bit moments need 4096 elements
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", VARIANTS)
def test_fit_killed_with_lora_or_8_bit_moments_is_bit_equal(tmp_path: Path, kind: str, every: int) -> None:
    policy, settings = VARIANTS[kind]
    expected, records = run_training(tmp_path / "uninterrupted", settings, policy=policy())
    run_training(tmp_path, settings, ("forward", 3), policy=policy(), checkpoint_every=every)
    weights, history = run_training(tmp_path, settings, policy=policy(), checkpoint_every=every)
    assert history == records
    assert [record["step"] for record in history] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    start = policy().state_dict()
    assert any(not torch.equal(start[name], value) for name, value in expected.items())


def test_fit_lora_trains_only_adapters(tmp_path: Path) -> None:
    weights, _ = run_training(tmp_path, optim(), policy=lora().wrap(llama(), seed=0))
    start = lora().wrap(llama(), seed=0).state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert changed == {name for name in start if "lora_" in name}


def test_fit_8_bit_moments_train_nearly_as_32_bit_ones(tmp_path: Path) -> None:
    """Quantised moments change the weights slightly."""
    start = gpt2(0.0, width=64).state_dict()
    moved = []
    for optimizer in ("adamw", "adamw_8bit"):
        settings = optim(optimizer=optimizer, lr=1e-3)
        weights, _ = run_training(tmp_path / optimizer, settings, policy=gpt2(0.0, width=64))
        moved.append(torch.cat([(weights[name] - start[name]).flatten() for name in start]))
    exact, quantised = moved
    assert not torch.equal(exact, quantised)
    assert float((exact - quantised).norm() / exact.norm()) < 0.3


def test_adamw_8bit_large_tensors_have_uint8_moments() -> None:
    module = SupervisedFineTuning(gpt2(0.0, width=64), optim(optimizer="adamw_8bit"), 6, 7, lambda record: None)
    (optimizer,), _ = module.configure_optimizers()
    for parameter in module.policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kinds = {p.numel() >= 4096: state["state1"].dtype for p, state in optimizer.state.items()}
    assert kinds == {True: torch.uint8, False: torch.float32}


def test_fit_resumed_reports_earlier_steps_and_runs_later_ones(tmp_path: Path) -> None:
    run_training(tmp_path, optim(), ("end", 6), checkpoint_every=2)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    reported: list[Record] = []
    _, history = run_training(tmp_path, optim(), report=reported.append, checkpoint_every=2)
    assert [record["step"] for record in reported] == [1, 2, 3, 4, 5, 6]  # so that a tracker has the whole curve
    assert [record["step"] for record in history] == [1, 2, 3, 4, 5, 6]


def test_fit_validation_does_not_change_training(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], list[Record]]
) -> None:
    weights, history = run_training(tmp_path, optim())
    assert history == [record for record in uninterrupted[1] if "loss" in record]
    assert all(torch.equal(weights[name], value) for name, value in uninterrupted[0].items())


def test_fit_validations_are_evenly_spaced(uninterrupted: tuple[dict[str, Tensor], list[Record]]) -> None:
    assert [record["step"] for record in uninterrupted[1] if "val_loss" in record] == [2, 4, 6]


def test_fit_dropout_is_on_in_training(tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], list[Record]]) -> None:
    _, history = run_training(tmp_path, optim(), policy=gpt2(0.0))
    assert history[0]["loss"] != next(r for r in uninterrupted[1] if "loss" in r)["loss"]


def test_fit_microbatch_size_does_not_change_training(tmp_path: Path) -> None:
    small, _ = run_training(tmp_path / "small", optim(), policy=float64_policy(), max_tokens_per_microbatch=1)
    large, _ = run_training(tmp_path / "large", optim(), policy=float64_policy(), max_tokens_per_microbatch=10**6)
    assert_equal_up_to_rounding(large, small)


@pytest.mark.parametrize(
    ("strategy", "adapter"), [("ddp", NoAdapter()), ("fsdp2", NoAdapter()), ("fsdp2", lora(dropout=0.0))]
)
@pytest.mark.filterwarnings("ignore")
def test_fit_two_ranks_train_as_one_rank(tmp_path: Path, strategy: str, adapter: Adapter) -> None:
    """Steps have three groups or one, and validation has one. So the parts of two ranks differ, and some are empty."""
    settings, rows, held_out = optim(batch_size=3, validations=2), groups(7), groups(1, seed=1)
    results = []
    for ranks in (1, 2):
        hardware_config = hardware(devices=ranks, strategy=strategy, max_tokens_per_microbatch=20)
        policy, reported = adapter.wrap(float64_policy(), seed=0).double(), list[Record]()
        data = StepData(rows, held_out, settings, hardware_config, seed=3)
        prepare(policy, rows, hardware_config)
        module = SupervisedFineTuning(
            policy, settings, len(data.steps()), hardware_config.logits_chunk, reported.append
        )
        assert fit(module, data, tmp_path / str(ranks), "test")
        assert reported == module.history
        results.append((policy.state_dict(), [without_speeds(record) for record in reported]))
    (weights, records), (other_weights, same_records) = results
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, atol=1e-9, rtol=1e-9)
    assert len(records) == len(same_records) == 6 + 2
    for record, same in zip(records, same_records, strict=True):
        assert same == pytest.approx(record, abs=1e-5)


SWEPO_OBJECTIVE = SWEPO(beta=0.1, alpha=1.0, power=1, nll_weight=0.0, length_normalised=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "objective", [self_contrast(0.1), SWEPO_OBJECTIVE, DFT(tau=1.0)], ids=["pairs", "scores", "sampler"]
)
def test_fit_two_ranks_have_the_metrics_of_one_rank(tmp_path: Path, objective: Objective) -> None:
    """Only one group has a third negative, so one of two ranks lacks the column of rank 3."""
    rows = [
        replace(group, negatives=group.negatives[:count])
        for group, count in zip(groups(6, negatives=3), (1, 2, 1, 3, 2, 1), strict=True)
    ]
    torch.manual_seed(0)
    sizes = {group.id: len(group.negatives) for group in rows}
    reference = {name: torch.full((1 + count,), -9.0) for name, count in sizes.items()}
    signals = {name: Signals(torch.rand(1 + count), -9 * torch.rand(count)) for name, count in sizes.items()}
    stored = StoredScores(reference, signals)
    settings, results = optim(batch_size=3), []
    for ranks in (1, 2):
        hardware_config = hardware(devices=ranks, max_tokens_per_microbatch=20)
        policy, reported = float64_policy(), list[Record]()
        data = StepData(rows, [], settings, hardware_config, seed=3)
        prepare(policy, rows, hardware_config)
        module = SelfContrastDPO(
            policy, settings, len(data.steps()), hardware_config.logits_chunk, reported.append, objective, stored
        )
        assert fit(module, data, tmp_path / str(ranks), "test")
        results.append([without_speeds(record) for record in reported])
    steps_with_rank_3 = [record["step"] for record in results[0] if "margin_rank_3" in record]
    assert len(steps_with_rank_3) == 2  # once an epoch
    for record, same in zip(*results, strict=True):
        assert same == pytest.approx(record, abs=1e-4)


def test_fit_without_prompt_sharing_trains_the_same_and_logs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, settings = groups(6, negatives=2), optim(batch_size=3)
    hardware_config = hardware(max_tokens_per_microbatch=60)
    objective = self_contrast(0.1)
    stored = {group.id: torch.full((3,), -9.0) for group in rows}
    results, reported = [], []
    for threshold in (1.0, 100.0):
        monkeypatch.setattr(steps_module, "MIN_SHARING_BOUND", threshold)
        policy, data = float64_policy(), StepData(rows, [], settings, hardware_config, seed=3)
        prepare(policy, rows, hardware_config)
        module = SelfContrastDPO(
            policy, settings, len(data.steps()), 7, lambda record: None, objective, StoredScores(stored)
        )
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert fit(module, data, tmp_path / str(threshold), "align")
        results.append(policy.state_dict())
        reported.append([m for m in caplog.messages if "own copy of the prompt" in m])
    assert [len(messages) for messages in reported] == [0, 1]
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-9, rtol=1e-9)


def test_self_check_attention_is_masked_only_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit_module._self_check_attention(hardware(attention="blocks"), sharded=False) == "blocks"
    monkeypatch.setattr(hardware_module, "_gpus", lambda: 1)
    hardware_config = hardware(accelerator="gpu", precision="bf16-mixed")
    assert fit_module._self_check_attention(hardware_config, sharded=False) == "masked"
    # A sharded policy is checked on the CPU.
    assert fit_module._self_check_attention(hardware_config, sharded=True) == "auto"


def test_fit_records_cost_of_each_step(tmp_path: Path) -> None:
    policy, hardware_config = llama(), hardware(peak_tflops=0.5)
    data = StepData(TRAIN, [], optim(), hardware_config, seed=3)
    prepare(policy, TRAIN, hardware_config)
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


def test_fit_nan_loss_names_group_and_keeps_last_checkpoint(tmp_path: Path) -> None:
    class NanLoss(SupervisedFineTuning):
        def losses(self, microbatch: MicroBatch) -> Any:
            loss, sums = super().losses(microbatch)
            if self.trainer.global_step == 3 and name in microbatch.packed.ids:
                index = microbatch.packed.ids.index(name)
                loss = loss * torch.where(torch.arange(len(loss)) == index, torch.nan, 1.0)
            return loss, sums

    policy, hardware_config = gpt2(0.1), hardware(checkpoint_every=2)
    data = StepData(TRAIN, [], optim(), hardware_config, seed=3)
    name = TRAIN[data.steps().indices(3)[1]].id
    prepare(policy, TRAIN, hardware_config)
    module = NanLoss(policy, optim(), len(data.steps()), hardware_config.logits_chunk, lambda record: None)
    with pytest.raises(UserError, match=rf"step 3.*{name}"):
        fit(module, data, tmp_path, "test")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert all(bool(value.isfinite().all()) for value in policy.state_dict().values())


def test_fit_learning_rate_follows_schedule(uninterrupted: tuple[dict[str, Tensor], list[Record]]) -> None:
    rates = [record["lr"] for record in uninterrupted[1] if "lr" in record]
    assert rates == pytest.approx([1e-2 * optim().lr_factor(step, 6) for step in range(6)])
