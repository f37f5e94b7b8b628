"""Compute every response in a separate row, for models in which a shared prompt would not be exact.

Soft-capped attention logits, attention sinks, linear attention and convolutions are computed by the model itself, over
rows of prompt and response. Rows of similar length form a batch, padded on the right. The models are causal, so no
token sees the padding behind it and no mask is needed. Padding on the left would change a recurrent state.
"""

from typing import Any

import torch
from torch import Tensor, nn

from selfcontrast.models.attention.blocks import Bucket, bucketed
from selfcontrast.models.packing import Layout, to_device

Rows = tuple[tuple[Bucket, ...], Tensor]
"""Batches of rows, as indices into the packed row; and [T] each token's index in the flattened batches."""


def why_unshared(model: nn.Module) -> str | None:
    """Return the feature of a causal model that prevents sharing a prompt; None if sharing is exact."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    reasons = {
        "soft-capped attention logits": getattr(config, "attn_logit_softcapping", None),
        "attention sinks": any(name.endswith("sinks") for name, _ in model.named_parameters()),
        f"layers of type {', '.join(sorted(layers))}": layers,
        "convolutions": any(isinstance(module, nn.Conv1d) for module in model.modules()),
        "custom attention outside transformers' AttentionInterface": not getattr(
            model, "_supports_attention_backend", False
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def use_exact_attention(model: Any) -> None:
    """Switch a model with soft caps to eager attention: transformers' default, SDPA, ignores the caps."""
    config = model.config.get_text_config()  # a multimodal model's config has a part for text
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def forward_rows(decoder: nn.Module, input_ids: Tensor, layout: Layout) -> Tensor:
    """Return the last hidden states [T, D] of a packed row ([1, T] ids), computed in separate rows per response.

    The states of a shared prompt are taken from the row of its first response.
    """
    if "rows" not in layout.memo:
        layout.memo["rows"] = _rows(layout)
    batches, slot = layout.memo["rows"]
    states = []
    for batch in batches:
        output = decoder(input_ids=input_ids[0, batch.tokens], use_cache=False)
        states.append(output.last_hidden_state.flatten(0, 1))
    return torch.cat(states).index_select(0, slot)


def _rows(layout: Layout) -> Rows:
    source, lengths = _unshared(layout)
    index = torch.tensor(source)
    batches, slots = bucketed(lengths)
    first_copy = torch.full((int(index.max()) + 1,), len(source))
    first_copy.scatter_reduce_(0, index, torch.arange(len(source)), "amin")
    device = layout.segment.device
    batches_on_device = tuple(Bucket(to_device(index[batch.tokens], device), None) for batch in batches)
    return batches_on_device, to_device(slots[first_copy], device)


def _unshared(layout: Layout) -> tuple[list[int], list[int]]:
    """Return indices of the packed row's tokens as concatenated rows of prompt and response, and the rows' lengths."""
    source: list[int] = []
    rows: list[int] = []
    lengths = iter(layout.lengths)
    for start, _, end in layout.groups:
        prompt = range(start, start + next(lengths))
        offset = prompt.stop
        if offset == end:  # prompt and response are one segment
            source += prompt
            rows.append(len(prompt))
        while offset < end:
            response = range(offset, offset + next(lengths))
            source += [*prompt, *response]
            rows.append(len(prompt) + len(response))
            offset = response.stop
    return source, rows
