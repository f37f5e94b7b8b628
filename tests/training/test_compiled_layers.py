"""Test that compiled layers need at most four graphs for rows of many different lengths."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from padded import CONFIGS, tiny
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.training.fit import compile_layers
from selfcontrast.training.recomputation import checkpoint_layers
from selfcontrast.training.weight_copies import WeightCopies


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Count the traced graphs. Run them with the eager backend, because the backend does not change their number."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_(self, backend="eager", **options))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def random_group(draw: random.Random, index: int) -> Group:
    """Return a group of random lengths. Its negatives are equally long."""
    prompt, target, negative = ([1] * draw.randint(1, longest) for longest in (12, 12, 9))
    return Group(str(index), prompt, target, [negative] * draw.randint(0, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpointing", "bf16_copy"),
    [("llama", "selective", True), ("qwen2", False, False), ("gpt2", True, False)],
)
def test_compile_layers_200_ragged_rows_at_most_4_graphs(
    graphs: Any, name: str, checkpointing: Any, bf16_copy: bool
) -> None:
    model, draw = tiny(CONFIGS[name]).train(), random.Random(0)
    use_shared_prompt(model, "blocks")
    if checkpointing:
        checkpoint_layers(model, checkpointing)
    compile_layers(model)
    copies = WeightCopies(model) if bf16_copy else None
    for _ in range(200):
        groups = [random_group(draw, i) for i in range(draw.randint(1, 3))]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_copy):
            response_log_probs(model, pack(groups), 64).sum().backward()
        if copies is not None:
            copies.refresh()
    assert 1 <= graphs() <= 4
