"""Compare FLOPs by formula with torch's counter."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from selfcontrast.models.packing import Group, pack
from selfcontrast.training.costs import Cost, peak_memory
from tiny import llama, lora


def gpt2() -> GPT2LMHeadModel:
    """Return a GPT-2 with eager attention, whose matrix products the counter sees."""
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}
    config = GPT2Config(**sizes, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "eager"
    return GPT2LMHeadModel(config)


def counted_flops(model: Any, tokens: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(1, tokens, dtype=torch.long)).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("tokens", [7, 20])
def test_cost_plain_model_equals_torchs_counter(tokens: int) -> None:
    model = gpt2()
    cost = Cost.of(model)
    # A plain forward computes logits at every position, and attention for every pair of tokens.
    assert (cost.body + cost.head) * tokens + cost.attention * tokens**2 == counted_flops(model, tokens)


def test_cost_packed_row_counts_tokens_and_pairs() -> None:
    """A token attends to the prompt, to earlier tokens of its response, and to itself."""
    cost = Cost(body=10_000, head=100, attention=1)
    packed = pack([Group("a", [1, 2, 3], [4, 5], [[6], [7, 8, 9]]), Group("b", [1], [2], [])])
    pairs = (1 + 2 + 3) + (4 + 5) + 4 + (4 + 5 + 6) + (1 + 2)
    assert packed.layout.attended == pairs == int((packed.position_ids + 1).sum())
    assert cost.flops(packed) == 10_000 * 11 + 100 * 7 + pairs


def test_cost_frozen_matrices_need_no_weight_gradient() -> None:
    full = Cost.of(llama())
    adapted = lora(rank=4).wrap(llama(), seed=0)
    adapters = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    matrices = sum(m.weight.numel() for name, m in llama().named_modules() if name.endswith("_proj"))
    assert full.body == 6 * matrices
    assert Cost.of(adapted) == Cost(4 * matrices + 6 * adapters, full.head * 4 // 6, full.attention)


def test_cost_attention_uses_head_width() -> None:
    assert Cost.of(llama()).attention == 12 * 2 * 2 * 16  # layers, heads, width


def test_peak_memory_includes_held_tensor() -> None:
    before = peak_memory()
    tensor = torch.ones(2**27)  # half a GiB
    assert tensor.sum() > 0
    assert peak_memory() >= before
    assert peak_memory() >= 0.5
