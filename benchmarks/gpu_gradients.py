"""Compare the gradients of packed groups with those of padded rows, for several head sizes and numbers of heads."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_setting import Setting
from meters import difference
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config
from workload import random_group

from selfcontrast.models.attention.choice import TRAINS_ON
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt

VOCABULARY = 512
FLOAT32 = 1e-5  # largest relative error
# Query heads, key and value heads, head size, tied embeddings.
MODELS = {
    "4 heads of 64": (4, 4, 64, False),
    "4 over 2 heads of 96": (4, 2, 96, False),
    "8 over 2 heads of 128, tied": (8, 2, 128, True),
}


def gradient_errors(attentions: Sequence[str], setting: Setting) -> list[dict[str, Any]]:
    """Return the relative errors of gradients, measured from the float32 gradient of padded rows.

    The limit is 1e-5 in float32. In bfloat16 it is 1.5 times the error of padded rows in bfloat16, because two
    roundings of equal size differ by chance. The table has the ratio itself.
    """
    attentions = [attention for attention in attentions if setting.tiny or attention in TRAINS_ON[setting.device]]
    groups = _groups(setting)
    rows = []
    for name, shape in MODELS.items():
        plain = _model(shape, setting)
        exact = _gradient(plain, lambda model: padded(model, groups), False)
        rounded = difference(_gradient(plain, lambda model: padded(model, groups), True), exact)
        for attention in attentions:
            for bf16 in (False, True):
                if (attention, bf16) == ("varlen", False) and setting.device == "cuda":
                    continue  # varlen's kernels do not support float32
                model = copy.deepcopy(plain)
                use_shared_prompt(model, attention)
                packed = _gradient(model, lambda m: response_log_probs(m, pack(groups).to(setting.device), 256), bf16)
                error = difference(packed, exact)
                limit = 1.5 * rounded if bf16 else FLOAT32
                rows.append(
                    {
                        "model": name,
                        "attention": attention,
                        "arithmetic": "bf16" if bf16 else "float32",
                        "error": error,
                        "padded rows' error": rounded if bf16 else None,
                        "ratio": error / rounded if bf16 else None,
                        "ok": error <= limit,
                    }
                )
    return rows


def _model(shape: tuple[int, int, int, bool], setting: Setting) -> Any:
    heads, shared, width, tied = shape
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=heads * width // (4 if setting.tiny else 1),
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=width,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(setting.device).train()


def _groups(setting: Setting) -> list[Group]:
    """Return ragged groups. One has a prompt and responses of one token, and another has 17 responses."""
    scale, draw = (1 if setting.tiny else 20), random.Random(0)
    lengths = [(9, 4, [7, 1, 3]), (1, 5, [2]), (6, 1, [1 + i % 5 for i in range(16)])]
    sizes = [(p * scale, max(1, r * scale), [n * scale for n in negatives]) for p, r, negatives in lengths]
    return [random_group(size, VOCABULARY, draw) for size in [*sizes, (1, 1, [1])]]


def padded(model: Any, groups: Sequence[Group]) -> Tensor:
    """Return log p(response | prompt) [B, K+1] from separate rows, padded on the right; 0 for a missing negative."""
    rows = [(b, j, [*g.prompt, *r], len(g.prompt)) for b, g in enumerate(groups) for j, r in enumerate(g.responses)]
    ids = torch.zeros(len(rows), max(len(row) for _, _, row, _ in rows), dtype=torch.long)
    attended, scored = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, (_, _, row, prompt) in enumerate(rows):
        ids[i, : len(row)], attended[i, : len(row)], scored[i, prompt : len(row)] = torch.tensor(row), 1, 1
    ids, attended, scored = (x.to(model.device) for x in (ids, attended, scored))
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1].float()
    sums = (logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * scored[:, 1:]).sum(-1)
    zeros = sums.new_zeros(len(groups), max(len(g.responses) for g in groups))
    indices = [torch.tensor(index, device=sums.device) for index in zip(*[row[:2] for row in rows], strict=True)]
    filled: Tensor = zeros.index_put((indices[0], indices[1]), sums)
    return filled


def _gradient(model: Any, log_probs: Callable[[Any], Tensor], bf16: bool) -> list[Tensor]:
    """Return the gradient of a weighted sum of log-probabilities, with autocast to bfloat16 if `bf16`."""
    model.zero_grad()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        values = log_probs(model)
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).to(values.device)
    torch.autograd.backward((values * weights).sum())
    return [p.grad.cpu() for p in model.parameters() if p.grad is not None]
