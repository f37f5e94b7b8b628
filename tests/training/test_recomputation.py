"""Test that gradient checkpointing and bfloat16 copies of weights leave gradients bit-equal."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from padded import CONFIGS, gradients, ragged, tiny
from selfcontrast.errors import UserError
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import pack
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.packed_module import Record
from selfcontrast.training.recomputation import checkpoint_layers
from selfcontrast.training.sft import SupervisedFineTuning
from selfcontrast.training.weight_copies import WeightCopies
from tiny import groups, hardware, llama, lora, optim

LAYERS = 3  # of each model in CONFIGS


class OperationCounter(TorchDispatchMode):
    """Count operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))

    def products(self) -> int:
        return self.counts["aten::mm"] + self.counts["aten::addmm"]


def run_once(name: str, attention_name: str, checkpointing: Any) -> tuple[Tensor, OperationCounter]:
    model = tiny(CONFIGS[name]).train()
    use_shared_prompt(model, attention_name)
    if checkpointing:
        checkpoint_layers(model, checkpointing)
    with OperationCounter() as counter:
        gradient = gradients(model, response_log_probs(model, pack(ragged(0)), 16))
    return gradient, counter


# `full` and `selective` are the numbers of matrix products per layer that each kind of checkpointing recomputes. Full
# checkpointing recomputes all except the last, whose result the backward pass does not need. Selective checkpointing
# recomputes those of an MLP wider than attention (qwen3's is not) and gpt2's joint product of queries, keys and values.
@pytest.mark.parametrize(("name", "full", "selective"), [("llama", 6, 2), ("qwen3", 6, 0), ("gpt2", 3, 2)])
@pytest.mark.parametrize(
    ("attention_name", "attention"),
    [
        ("varlen", "selfcontrast::merged_attention"),
        ("blocks", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        ("masked", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    ],
)
def test_checkpoint_layers_selective_keeps_attention_and_narrow_products(
    name: str, full: int, selective: int, attention_name: str, attention: str
) -> None:
    plain_gradient, plain = run_once(name, attention_name, False)
    full_gradient, with_full = run_once(name, attention_name, True)
    selective_gradient, with_selective = run_once(name, attention_name, "selective")
    assert torch.equal(full_gradient, plain_gradient)
    assert torch.equal(selective_gradient, plain_gradient)
    calls = plain.counts[attention]
    assert calls > 0
    assert (with_full.counts[attention], with_selective.counts[attention]) == (2 * calls, calls)
    assert (with_full.products(), with_selective.products()) == (
        plain.products() + LAYERS * full,
        plain.products() + LAYERS * selective,
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
def test_weight_copies_gradients_are_bit_equal_to_autocast(name: str, checkpointing: Any) -> None:
    results = []
    for bf16_copy in (False, True):
        model = tiny(CONFIGS[name]).train()
        use_shared_prompt(model, "blocks")
        if checkpointing:
            checkpoint_layers(model, checkpointing)
        copies = WeightCopies(model) if bf16_copy else None
        with torch.autocast("cpu", torch.bfloat16), OperationCounter() as counter:
            value = response_log_probs(model, pack(ragged(0)), 16)
        results.append((value.detach(), gradients(model, value), counter.counts["aten::_to_copy"]))
        if copies is not None:
            assert len(copies.layers) == 7 * LAYERS
            copies.remove()
            assert not any(hasattr(module, "bf16_copy") for module in model.modules())
    plain, copied = results
    assert torch.equal(copied[0], plain[0])
    assert torch.equal(copied[1], plain[1])
    assert copied[2] == plain[2] - 7 * LAYERS  # no weight of a layer is cast


@pytest.mark.parametrize("adapted", [False, True])
def test_fit_with_weight_copies_is_bit_equal(tmp_path: Path, adapted: bool) -> None:
    """The run has several micro-batches per step, and validations."""
    rows, settings, results = groups(10), optim(validations=3), []
    for bf16_copy in (False, True):
        hardware_config = hardware(precision="bf16-mixed", bf16_copy=bf16_copy, max_tokens_per_microbatch=30)
        policy = lora(dropout=0.0).wrap(llama(), seed=0) if adapted else llama()
        prepare(policy, rows, hardware_config)
        records: list[Record] = []
        data = StepData(rows, groups(3, seed=1), settings, hardware_config, seed=3)
        module = SupervisedFineTuning(policy, settings, len(data.steps()), hardware_config.logits_chunk, records.append)
        assert fit(module, data, tmp_path / str(bf16_copy), "test")
        losses = [record.get("loss", record.get("val_loss")) for record in records]
        results.append((losses, {name: value.clone() for name, value in policy.state_dict().items()}))
    (plain, weights), (losses, same) = results
    assert losses == plain
    assert len(losses) == 6 + 3
    assert weights.keys() == same.keys()
    assert all(torch.equal(same[name], value) for name, value in weights.items())


@pytest.mark.parametrize("options", [{"precision": "32-true"}, {"strategy": "fsdp2"}], ids=str)
def test_hardware_bf16_copy_unsupported_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^hardware\.bf16_copy=true.*false"):
        hardware(**{"precision": "bf16-mixed", "bf16_copy": True, **options})
