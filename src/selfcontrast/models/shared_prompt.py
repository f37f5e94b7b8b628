"""The mode for packed groups: each prompt is computed once, each response sees its prompt and itself.

An attention function for transformers' `AttentionInterface`, so any decoder that uses that interface works
unchanged: its linears, norms and MLPs run over the packed row, without padding.

The layout travels as a keyword argument of the decoder's forward, which transformers hands down to every
attention call. Gradient checkpointing binds those arguments to the layer that it will recompute; a context
variable would be gone by the time the backward pass does. For the same reason a model stays in this mode once
it is set: without a layout, it is transformers' own SDPA attention.
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

# By the ways of attention that can be asked for, what transformers knows each by.
NAMES = {way: f"shared_prompt_{way}" for way in ATTENTIONS}
# What a layer may ask of attention that is not computed here, by the keyword transformers passes it with.
_REFUSED = {
    "softcap": "soft-capped attention logits",
    "s_aux": "attention sinks",
    "position_bias": "position biases",
}


def use_shared_prompt(model: nn.Module, attention: str | None = None) -> None:
    """Puts a causal language model (or its peft wrapper) into this mode, for good.

    A model that cannot compute a shared prompt exactly keeps its own attention: `forward_packed` then computes rows of
    their own (`rows.py`).

    `attention` is one of `ATTENTIONS`; without it, a model that is in this mode keeps its own, and another gets "auto".
    Raises `UserError` for a model that is not causal.
    """
    known = model.config._attn_implementation  # type: ignore[union-attr]
    if attention is None and known in NAMES.values():
        return
    if known not in NAMES.values():
        check_causal(model)
        if why_unshared(model):
            use_exact_attention(model)
            return
    model.set_attn_implementation(NAMES[attention or "auto"])  # type: ignore[operator]


def check_causal(model: nn.Module) -> None:
    """Raises `UserError` that names what a model has and no causal model may."""
    config: Any = model.config
    reasons = {
        "an encoder": getattr(config, "is_encoder_decoder", False),
        "attention that is not causal": not getattr(config, "is_causal", True),
    }
    for reason, found in reasons.items():
        if found:
            raise UserError(f"model type {config.model_type!r} has {reason}: choose a causal model, such as Llama.")


def is_shared(model: nn.Module) -> bool:
    """Whether a model is in this mode."""
    config: Any = model.config
    return config._attn_implementation in NAMES.values()


def forward_packed(decoder: nn.Module, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
    """Last hidden states [T, D] of a packed row ([1, T] ids): in this mode, or else in rows of their own."""
    if not is_shared(decoder):
        return forward_rows(decoder, input_ids, layout)
    # A mask that is already four-dimensional keeps transformers from building one of T x T; nobody reads it.
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
    output = decoder(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=unread,
        use_cache=False,
        shared_prompt=layout,
    )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # traced, every row's blocks would be a graph of their own
def _attention(  # noqa: PLR0913  # transformers' own arguments
    way: str,
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
    """query [1, H, T, d], key and value [1, H or fewer, T, d] -> [1, T, H, d], as transformers wants it."""
    if shared_prompt is None:
        kwargs |= {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    for keyword, reason in _REFUSED.items():
        if kwargs.get(keyword) is not None:
            raise UserError(f"{type(module).__name__} has {reason}: choose a plain decoder, such as Llama.")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    window = sliding_window if sliding_window and sliding_window < shared_prompt.longest else None
    used = choose(way, query, value, dropout, window)
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
    """[1, H, T, d] -> [1, H * repeats, T, d]: grouped-query attention, spelt out."""
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


for _way, _name in NAMES.items():
    AttentionInterface.register(_name, partial(_attention, _way))
    AttentionMaskInterface.register(_name, sdpa_mask)
