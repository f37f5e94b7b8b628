"""QLoRA on the CPU: the 4-bit base, the start of training, saved policies, and the checks before any compute."""

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_adapters import SCRATCH, with_random_b
from torch import nn
from transformers import AutoModelForCausalLM

from selfcontrast.errors import UserError
from selfcontrast.models import quantised
from selfcontrast.models.adapters import NoAdapter, QLoRA
from selfcontrast.models.loading import load_model
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import pack
from selfcontrast.models.quantised import FourBit, is_quantised
from selfcontrast.training.align import align, checkpoint_folder
from selfcontrast.training.costs import Cost
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.packed_module import Record
from selfcontrast.training.reference import score_groups
from selfcontrast.training.training import Training
from tiny import LORA, groups, hardware, llama, lora, objective_of, optim, policy_folder, self_contrast

WIDTH = 64  # width of the model: 4-bit quantisation has one scale per 64 weights


def qlora(**changes: Any) -> QLoRA:
    settings = {**vars(LORA), "quant_type": "nf4", "double_quant": True, "compute_dtype": "float32"}
    return QLoRA(**{**settings, **changes})


def dequantised_copy(model: Any, adapter: QLoRA) -> Any:
    """Copy a model and round its linear layers to their 4-bit values."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    rounded = copy.deepcopy(model)
    for layer in rounded.modules():
        if type(layer) is nn.Linear and layer is not rounded.lm_head:
            quantised = quantize_4bit(
                layer.weight.data, quant_type=adapter.quant_type, compress_statistics=adapter.double_quant, blocksize=64
            )
            layer.weight.data = dequantize_4bit(*quantised)
    return rounded


@pytest.mark.parametrize("settings", [{}, {"quant_type": "fp4"}, {"double_quant": False}], ids=str)
def test_qlora_wrap_starts_at_the_quantised_base(settings: dict[str, Any]) -> None:
    plain, packed, adapter = llama(width=WIDTH), pack(groups(3, 2)), qlora(**settings)
    rounded = dequantised_copy(plain, adapter)
    wrapped = adapter.wrap(copy.deepcopy(plain), seed=0).eval()
    actual = response_log_probs(wrapped, packed, 7)
    torch.testing.assert_close(actual, response_log_probs(rounded, packed, 7), atol=1e-3, rtol=1e-4)
    assert float((actual - response_log_probs(plain, packed, 7)).abs().max()) > 0.1  # rounding changes the model
    layers = [layer for layer in wrapped.modules() if is_quantised(layer)]
    assert len(layers) == 2 * 7  # all linear layers of a block, but not the output layer
    assert {parameter.dtype for layer in layers for parameter in layer.parameters()} == {torch.uint8}
    assert all(layer.weight.numel() * 2 == math.prod(layer.weight.quant_state.shape) for layer in layers)


def test_gradients_reach_only_the_adapters() -> None:
    policy = with_random_b(qlora(dropout=0.0).wrap(llama(width=WIDTH), seed=0)).train()
    response_log_probs(policy, pack(groups(3, 2)), 7).sum().backward()
    reached = {n for n, p in policy.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {n for n, p in policy.named_parameters() if p.requires_grad}
    assert len(reached) == 2 * 14


@pytest.mark.parametrize("targets", ["all-linear", ["v_proj"]])
def test_qlora_merge_returns_a_plain_model_with_the_same_log_probs(targets: Any) -> None:
    policy = with_random_b(qlora(target_modules=targets).wrap(llama(width=WIDTH), seed=0)).eval()
    packed = pack(groups(3, 2))
    with torch.no_grad():
        before = response_log_probs(policy, packed, 7)
        merged = qlora().merge(policy)
        after = response_log_probs(merged, packed, 7)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-4)
    assert type(merged) is type(llama())
    assert merged.state_dict().keys() == llama(width=WIDTH).state_dict().keys()
    assert {value.dtype for value in merged.state_dict().values()} == {torch.float32}


def test_align_with_qlora_starts_at_its_reference_and_learns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The stored scores are those of the unquantised model. With them the first margin would not be 0."""
    sft, config, rows = policy_folder(tmp_path / "sft", width=WIDTH), hardware(self_check=True), groups(8, 2)
    scored = score_groups(load_model(sft), rows, config)
    stored = {name: torch.tensor([sum(tokens) for tokens in responses]) for name, responses in scored.items()}
    records: list[Record] = []
    training = Training(qlora(dropout=0.0), optim(epochs=6), config, 0, records.append)
    (tmp_path / "align").mkdir()
    align(tmp_path / "align", sft, "float32", rows, StoredScores(stored), self_contrast(0.5), training)
    assert records[0]["step0/margin_std"] == pytest.approx(0, abs=1e-4)
    assert records[0]["step0/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert records[-1]["margin"] > 0.1
    assert "step 0" not in caplog.text
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "align/model")
    assert not any(is_quantised(layer) for layer in policy.modules())
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("sft", "align/model"))
    assert after.keys() == before.keys()
    rounded = dequantised_copy(llama(width=WIDTH), qlora()).state_dict()
    moved, rounding = (
        float((state["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]).norm())
        for state in (after, rounded)
    )
    assert moved > rounding > 0


def test_checkpoints_hold_only_adapters() -> None:
    policy = qlora().wrap(llama(width=WIDTH), seed=0)
    module = SelfContrastDPO(policy, optim(), 6, 7, lambda record: None, self_contrast(0.1), StoredScores({}))
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    assert any("absmax" in name for name in checkpoint["state_dict"])
    module.on_save_checkpoint(checkpoint)
    assert {name.split(".")[-2] for name in checkpoint["state_dict"]} == {"default"}


def test_cost_of_qlora_equals_lora() -> None:
    lora_cost, qlora_cost = (Cost.of(adapter.wrap(llama(width=WIDTH), seed=0)) for adapter in (lora(), qlora()))
    assert lora_cost == qlora_cost


@pytest.mark.parametrize("package", ["peft", "bitsandbytes"])
def test_qlora_check_missing_package_raises(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"adapter=qlora needs {package}\b.*pip install -e"):
        qlora().check(SCRATCH)


def test_qlora_check_unsupported_machine_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FourBit, linear: nn.Linear) -> nn.Module:
        raise RuntimeError("no binary for this device\nand more")

    qlora().check(SCRATCH)
    monkeypatch.setattr(quantised.FourBit, "layer", broken)
    with pytest.raises(UserError, match=r"adapter=qlora.*\(no binary for this device\).*adapter=lora"):
        qlora().check(SCRATCH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 2}, "devices=2"),
        ({"strategy": "fsdp2"}, "strategy=fsdp2"),
        ({"bf16_copy": True, "precision": "bf16-mixed"}, "bf16_copy=true"),
        ({"max_tokens_per_microbatch": "auto"}, "max_tokens_per_microbatch=auto"),
    ],
    ids=str,
)
def test_qlora_unsupported_hardware_settings_raise(changes: dict[str, Any], message: str) -> None:
    hardware().check_quantised()
    with pytest.raises(UserError, match=f"adapter=qlora with hardware.{message}"):
        hardware(**changes).check_quantised()
    assert (NoAdapter().quantised, lora().quantised, qlora().quantised) == (False, False, True)


def train_adapters(folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    """Train 6 steps, from a checkpoint if there is one, and fail at `stop_at`. Return the adapters' weights."""

    def report(record: Record) -> None:
        if record["step"] == stop_at:
            raise RuntimeError("killed")

    config, settings, rows = hardware(checkpoint_every=1), optim(epochs=3), groups(8, 2)
    policy = qlora(dropout=0.0).wrap(llama(width=WIDTH), seed=0)
    data = StepData(rows, [], settings, config, 0)
    prepare(policy, rows, config)
    stored = {group.id: torch.full((3,), -9.0) for group in rows}
    module = SelfContrastDPO(policy, settings, len(data.steps()), 7, report, self_contrast(0.5), StoredScores(stored))
    fit(module, data, folder, "align")
    return {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}


def test_fit_with_qlora_resumes_exactly(tmp_path: Path) -> None:
    uninterrupted = train_adapters(tmp_path / "uninterrupted")
    with pytest.raises(RuntimeError, match="killed"):
        train_adapters(tmp_path / "stopped", stop_at=4)
    checkpoint = torch.load(tmp_path / "stopped/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    resumed = train_adapters(tmp_path / "stopped")
    assert all(torch.equal(value, resumed[name]) for name, value in uninterrupted.items())


@pytest.mark.parametrize("objective", ["self_contrast", "simpo"])
def test_align_with_qlora_logs_no_change_at_step_0(tmp_path: Path, objective: str) -> None:
    """`chosen_log_prob_change` is relative to the start of training, for objectives with and without a reference."""
    sft, config, rows = policy_folder(tmp_path / "sft", width=WIDTH), hardware(self_check=False), groups(4, 2)
    stored = {group.id: torch.full((3,), -50.0) for group in rows}  # scores of another model
    records: list[Record] = []
    (tmp_path / "align").mkdir()
    training = Training(qlora(dropout=0.0), optim(epochs=1, batch_size=4), config, 0, records.append)
    align(tmp_path / "align", sft, "float32", rows, StoredScores(stored), objective_of(objective), training)
    assert records[0]["chosen_log_prob_change"] == pytest.approx(0, abs=1e-3)


def test_policy_checkpoints_with_qlora_are_whole_models(tmp_path: Path) -> None:
    sft, config, rows = policy_folder(tmp_path / "sft", width=WIDTH), hardware(self_check=False), groups(4, 2)
    stored = {group.id: torch.zeros(3) for group in rows}
    (tmp_path / "align").mkdir()
    training = Training(qlora(), optim(epochs=4, batch_size=4), config, 0, lambda record: None, checkpoints=2)
    align(tmp_path / "align", sft, "float32", rows, StoredScores(stored), self_contrast(0.5), training)
    policies = [tmp_path / "align/model", checkpoint_folder(tmp_path / "align", 1)]
    final, checkpoint = (load_file(folder / "model.safetensors") for folder in policies)
    assert final.keys() == checkpoint.keys()
    assert any(not torch.equal(value, checkpoint[name]) for name, value in final.items())
