"""Score the targets of held-out prompts under a policy."""

from collections.abc import Sequence
from pathlib import Path

import torch

from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.models.loading import load_model
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt


@torch.no_grad()
def target_log_probs(
    model: Path, dtype: str, renderer: Renderer, examples: Sequence[Example], device: str, max_length: int
) -> list[dict[str, float | str]]:
    """Return per example its id, the target's summed log-probability in nats, and the target's number of tokens.

    Examples longer than `max_length` tokens are left out.
    """
    policy = load_model(model, dtype).to(device).eval()
    use_shared_prompt(policy)
    rows: list[dict[str, float | str]] = []
    for example in examples:
        prompt, target = renderer.example(example)
        if len(prompt) + len(target) > max_length:
            continue
        packed = pack([Group(example.id, prompt, target, [])]).to(device)
        value = float(response_log_probs(policy, packed, chunk_size=1024)[0, 0])
        rows.append({"id": example.id, "log_prob": value, "tokens": len(target)})
    return rows
