"""FLOPs by formula against torch's own counter, operation by operation."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from selfcontrast.models.packing import Group, pack
from selfcontrast.training.costs import Cost, peak_memory
from tiny import llama, lora


def gpt2() -> GPT2LMHeadModel:
    """With attention that multiplies whole matrices, which the counter sees."""
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}
    config = GPT2Config(**sizes, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "eager"
    return GPT2LMHeadModel(config)


def counted(model: Any, tokens: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(1, tokens, dtype=torch.long)).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("tokens", [7, 20])
def test_the_formula_is_what_torch_counts(tokens: int) -> None:
    model = gpt2()
    cost = Cost.of(model)
    # the plain forward takes logits at every position, and pairs of every two tokens
    assert (cost.body + cost.head) * tokens + cost.attention * tokens**2 == counted(model, tokens)


def test_the_tokens_and_pairs_of_a_packed_row() -> None:
    """6 N per token, 6 V D per response token; a token sees the prompt, its own response so far, and itself."""
    cost = Cost(body=10_000, head=100, attention=1)
    packed = pack([Group("a", [1, 2, 3], [4, 5], [[6], [7, 8, 9]]), Group("b", [1], [2], [])])
    pairs = (1 + 2 + 3) + (4 + 5) + 4 + (4 + 5 + 6) + (1 + 2)
    assert packed.layout.attended == pairs == int((packed.position_ids + 1).sum())
    assert cost.flops(packed) == 10_000 * 11 + 100 * 7 + pairs


def test_frozen_matrices_spare_their_own_gradient() -> None:
    full = Cost.of(llama())
    adapted = lora(rank=4).wrap(llama(), seed=0)
    adapters = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    matrices = sum(m.weight.numel() for name, m in llama().named_modules() if name.endswith("_proj"))
    assert full.body == 6 * matrices
    assert Cost.of(adapted) == Cost(4 * matrices + 6 * adapters, full.head * 4 // 6, full.attention)


def test_the_width_of_a_head_counts_and_not_that_of_the_model() -> None:
    assert Cost.of(llama()).attention == 12 * 2 * 2 * 16  # layers, heads, width


def test_peak_memory_grows_by_what_is_held() -> None:
    before = peak_memory()
    held = torch.ones(2**27)  # half a GiB
    assert held.sum() > 0
    assert peak_memory() >= before
    assert peak_memory() >= 0.5
