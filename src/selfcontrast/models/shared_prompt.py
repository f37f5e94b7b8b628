"""Attention for packed groups: each prompt is computed once, and each response attends to its prompt and itself.

This module registers attention functions for transformers' `AttentionInterface`, so decoders that use this interface
work unchanged. Their linear layers, norms and MLPs run over the packed row, without padding.

The layout is a keyword argument of the decoder's forward, which transformers passes to every attention call. Gradient
checkpointing stores these arguments for the recomputation; a context variable would be reset by then. For the same
reason a model stays in this mode. Without a layout it uses transformers' own SDPA attention.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from selfcontrast.errors import UserError
from selfcontrast.models.attention import blocks, flex_check, masked, varlen
from selfcontrast.models.attention.choice import ATTENTIONS, choose
from selfcontrast.models.packing import Layout
from selfcontrast.models.rows import forward_rows, use_exact_attention, why_unshared

# The name under which each implementation is registered in transformers.
NAMES = {attention: f"shared_prompt_{attention}" for attention in ATTENTIONS}
# Unsupported features of a layer, by the keyword under which transformers passes them.
_REFUSED = {
    "softcap": "soft-capped attention logits",
    "s_aux": "attention sinks",
    "position_bias": "position biases",
}


def use_shared_prompt(model: nn.Module, attention: str | None = None) -> None:
    """Switch a causal language model (or its peft wrapper) to shared-prompt attention, permanently.

    A model that cannot share a prompt exactly keeps its attention; `forward_packed` then uses separate rows (`rows`).

    Args:
        attention: one of `ATTENTIONS`; None keeps a shared-prompt attention in use; without one, it selects "auto".

    Raises:
        UserError: if the model is not causal.
    """
    current = model.config._attn_implementation  # type: ignore[union-attr]
    if attention is None and current in NAMES.values():
        return
    if current not in NAMES.values():
        check_causal(model)
        if why_unshared(model):
            use_exact_attention(model)
            return
    model.set_attn_implementation(NAMES[attention or "auto"])  # type: ignore[operator]


def check_causal(model: nn.Module) -> None:
    """Raise `UserError` with the reason if a model is not causal."""
    config: Any = model.config
    reasons = {
        "an encoder": getattr(config, "is_encoder_decoder", False),
        "attention that is not causal": not getattr(config, "is_causal", True),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"model type {config.model_type!r} has {reason}. Use a causal model, such as Llama.")


def is_shared(model: nn.Module) -> bool:
    """Return True if a model uses shared-prompt attention."""
    config: Any = model.config
    return config._attn_implementation in NAMES.values()


def forward_packed(decoder: nn.Module, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
    """Return the last hidden states [T, D] of a packed row ([1, T] ids). Without shared prompts, use separate rows."""
    if not is_shared(decoder):
        return forward_rows(decoder, input_ids, layout)
    # A four-dimensional mask keeps transformers from building a T x T mask. This dummy is never read.
    dummy = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
    output = decoder(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=dummy,
        use_cache=False,
        shared_prompt=layout,
    )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


# torch must not compile this function, because the blocks of every row would give a new graph.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attention(  # noqa: PLR0913  # transformers' own arguments
    requested: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prompt: Layout | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Map query [1, H, T, d], key and value [1, H or fewer, T, d] to [1, T, H, d], as transformers expects."""
    if shared_prompt is None:
        kwargs |= {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    for keyword, reason in _REFUSED.items():
        if kwargs.get(keyword) is not None:
            raise UserError(f"{type(module).__name__} has {reason}. Use a plain decoder, such as Llama.")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    window = sliding_window if sliding_window and sliding_window < shared_prompt.longest else None
    used = choose(requested, query, value, dropout, window)
    if used == "varlen":
        return varlen.attend(query, key, value, shared_prompt, scaling), None
    if used == "flex":
        output = flex_check.attend(query, key, value, shared_prompt, scaling, window)
        if output is not None:
            return output, None
    repeats = query.shape[1] // key.shape[1]
    key, value = _repeat(key, repeats), _repeat(value, repeats)
    if used == "blocks":
        return blocks.attend(query, key, value, shared_prompt, scaling), None
    return masked.attend(query, key, value, shared_prompt, scaling, dropout, window), None


def _repeat(x: Tensor, repeats: int) -> Tensor:
    """Expand grouped-query heads: [1, H, T, d] -> [1, H * repeats, T, d]."""
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


for _requested, _name in NAMES.items():
    AttentionInterface.register(_name, partial(_attention, _requested))
    AttentionMaskInterface.register(_name, sdpa_mask)
