"""Compute log-probabilities the slow way, one padded row per response with transformers' attention, as a reference."""

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from selfcontrast.models.packing import Group

VOCABULARY = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=4096),
    "mistral with a window shorter than the rows": MistralConfig(**SHAPE, sliding_window=5),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "gpt2": GPT2Config(**GPT2, **NO_DROPOUT),
}


def tiny(config: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    return model


def ragged(seed: int, negatives: tuple[int, ...] = (3, 0, 5, 1)) -> list[Group]:
    """Return one group of random tokens, of random lengths, for each number of negatives."""
    draw = random.Random(seed)

    def tokens(longest: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, longest))]

    return [Group(str(k), tokens(12), tokens(9), [tokens(20) for _ in range(k)]) for k in negatives]


def padded(model: nn.Module, groups: list[Group]) -> Tensor:
    """Return log-probabilities [B, K+1] from one padded row per response, all logits, and the model's own attention."""
    responses = [(b, j, g.prompt, r) for b, g in enumerate(groups) for j, r in enumerate(g.responses)]
    longest = max(len(prompt) + len(response) for _, _, prompt, response in responses)
    ids = torch.zeros(len(responses), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(ids)
    for row, (_, _, prompt, response) in enumerate(responses):
        ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        attention_mask[row, : len(prompt) + len(response)] = 1
    log_probs = model(input_ids=ids, attention_mask=attention_mask).logits.log_softmax(-1)
    columns = max(len(group.responses) for group in groups)
    sums = [[log_probs.new_zeros(()) for _ in range(columns)] for _ in groups]
    for row, (b, j, prompt, response) in enumerate(responses):
        for position, token in enumerate(response, start=len(prompt)):
            sums[b][j] = sums[b][j] + log_probs[row, position - 1, token]
    return torch.stack([torch.stack(row) for row in sums])


def gradients(model: nn.Module, log_probs: Tensor) -> Tensor:
    """Return the flat gradient of a weighted sum of `log_probs`, with fixed random weights."""
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(1)).to(log_probs)
    model.zero_grad()
    (weights * log_probs).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())
