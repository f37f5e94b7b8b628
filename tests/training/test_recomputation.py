"""What checkpointing keeps and computes again; bfloat16 copies of weights: neither changes a gradient by one bit."""

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
from selfcontrast.training.module import Record
from selfcontrast.training.modules import SupervisedFineTuning
from selfcontrast.training.recomputation import checkpoint_layers
from selfcontrast.training.weight_copies import WeightCopies
from tiny import groups, hardware, llama, lora, optim

LAYERS = 3  # of CONFIGS


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))

    def products(self) -> int:
        return self.counts["aten::mm"] + self.counts["aten::addmm"]


def trained_once(name: str, way: str, how: Any) -> tuple[Tensor, Counted]:
    model = tiny(CONFIGS[name]).train()
    use_shared_prompt(model, way)
    if how:
        checkpoint_layers(model, how)
    with Counted() as counted:
        found = gradients(model, response_log_probs(model, pack(ragged(0)), 16))
    return found, counted


# Of each layer: all products but the last, which nothing needs again; of them those of an MLP that is wider than
# attention (of qwen3 it is not), and gpt2's one for queries, keys and values together.
@pytest.mark.parametrize(("name", "again", "wide"), [("llama", 6, 2), ("qwen3", 6, 0), ("gpt2", 3, 2)])
@pytest.mark.parametrize(
    ("way", "attention"),
    [
        ("varlen", "selfcontrast::merged_attention"),
        ("blocks", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        ("masked", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    ],
)
def test_selective_checkpointing_keeps_attention_and_narrow_products(
    name: str, again: int, wide: int, way: str, attention: str
) -> None:
    plain, once = trained_once(name, way, False)
    whole, twice = trained_once(name, way, True)
    found, counted = trained_once(name, way, "selective")
    assert torch.equal(whole, plain)
    assert torch.equal(found, plain)
    assert once.counts[attention] > 0
    assert (twice.counts[attention], counted.counts[attention]) == (2 * once.counts[attention], once.counts[attention])
    assert (twice.products(), counted.products()) == (
        once.products() + LAYERS * again,
        once.products() + LAYERS * wide,
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("how", [False, True, "selective"])
def test_copies_have_the_gradients_of_autocast_to_the_bit(name: str, how: Any) -> None:
    found = []
    for copied in (False, True):
        model = tiny(CONFIGS[name]).train()
        use_shared_prompt(model, "blocks")
        if how:
            checkpoint_layers(model, how)
        copies = WeightCopies(model) if copied else None
        with torch.autocast("cpu", torch.bfloat16), Counted() as counted:
            value = response_log_probs(model, pack(ragged(0)), 16)
        found.append((value.detach(), gradients(model, value), counted.counts["aten::_to_copy"]))
        if copies is not None:
            assert len(copies.layers) == 7 * LAYERS
            copies.remove()
            assert not any(hasattr(module, "bf16_copy") for module in model.modules())
    plain, own = found
    assert torch.equal(own[0], plain[0])
    assert torch.equal(own[1], plain[1])
    assert own[2] == plain[2] - 7 * LAYERS  # no weight of a layer is cast


@pytest.mark.parametrize("adapted", [False, True])
def test_training_by_copies_is_training(tmp_path: Path, adapted: bool) -> None:
    """Several passes per step, validations, and an end by an exception: weights and records as without copies."""
    rows, how, found = groups(10), optim(validations=3), []
    for copied in (False, True):
        own = hardware(precision="bf16-mixed", bf16_copy=copied, max_tokens_per_microbatch=30)
        policy = lora(dropout=0.0).wrap(llama(), seed=0) if adapted else llama()
        prepare(policy, rows, own)
        records: list[Record] = []
        data = StepData(rows, groups(3, seed=1), how, own, seed=3)
        module = SupervisedFineTuning(policy, how, len(data.steps()), own.logits_chunk, records.append)
        assert fit(module, data, tmp_path / str(copied), "test")
        losses = [record.get("loss", record.get("val_loss")) for record in records]
        found.append((losses, {name: value.clone() for name, value in policy.state_dict().items()}))
    (plain, weights), (losses, same) = found
    assert losses == plain
    assert len(losses) == 6 + 3
    assert weights.keys() == same.keys()
    assert all(torch.equal(same[name], value) for name, value in weights.items())


@pytest.mark.parametrize("wrong", [{"precision": "32-true"}, {"strategy": "fsdp2"}], ids=str)
def test_copies_where_they_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^hardware\.bf16_copy=true.*: leave it false$"):
        hardware(**{"precision": "bf16-mixed", "bf16_copy": True, **wrong})
