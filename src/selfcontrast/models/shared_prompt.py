"""Attention over packed groups: each prompt is computed once, each response sees its prompt and itself.

An attention function for transformers' `AttentionInterface`, so any decoder that uses that interface works
unchanged: its linears, norms and MLPs run over the packed row, without padding.

The layout travels as a keyword argument of the decoder's forward, which transformers hands down to every
attention call. Gradient checkpointing binds those arguments to the layer that it will recompute; a context
variable would be gone by the time the backward pass does. For the same reason a model stays in this mode once
it is set: without a layout, it is transformers' own SDPA attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from selfcontrast.errors import UserError
from selfcontrast.models.packing import Layout

NAME = "shared_prompt"
# What a layer may ask of attention that is not computed here, by the keyword transformers passes it with.
_REFUSED = {
    "softcap": "soft-capped attention logits",
    "s_aux": "attention sinks",
    "position_bias": "position biases",
}

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def use_shared_prompt(model: nn.Module) -> None:
    """Puts a causal language model (or its peft wrapper) into this mode, for good.

    Raises `UserError` for an architecture that would be computed wrongly.
    """
    if model.config._attn_implementation != NAME:  # type: ignore[union-attr]
        check_supported(model)
        model.set_attn_implementation(NAME)  # type: ignore[operator]


def check_supported(model: nn.Module) -> None:
    """Raises `UserError` that names what a model has and packed groups cannot honour."""
    config: Any = model.config
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    reasons = {
        "an encoder": getattr(config, "is_encoder_decoder", False),
        "attention of its own, outside transformers' AttentionInterface": not getattr(
            model, "_supports_attention_backend", False
        ),
        f"layers of type {', '.join(sorted(layers))}": layers,
        "convolutions, which would mix the responses": any(isinstance(m, nn.Conv1d) for m in model.modules()),
        "soft-capped attention logits": getattr(config, "attn_logit_softcapping", None),
        "attention sinks": any(name.endswith("sinks") for name, _ in model.named_parameters()),
        "attention that is not causal": not getattr(config, "is_causal", True),
    }
    for reason, found in reasons.items():
        if found:
            raise UserError(
                f"model type {config.model_type!r} has {reason}: shared-prompt training cannot compute that "
                "exactly. Choose a plain decoder such as Llama, Mistral, Qwen or GPT-2."
            )


def forward_packed(decoder: nn.Module, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
    """Last hidden states [T, D] of a packed row ([1, T] ids) by a decoder in this mode."""
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


def _attention(
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
    repeats = query.shape[1] // key.shape[1]
    q, k, v = (x[0].transpose(0, 1) for x in (query, _repeat(key, repeats), _repeat(value, repeats)))
    window = sliding_window if sliding_window and sliding_window < shared_prompt.longest else None
    if query.device.type == "cpu" and not dropout and not window and q.shape[-1] == v.shape[-1]:
        return _Blocks.apply(q, k, v, shared_prompt, scaling)[None], None  # type: ignore[no-untyped-call]
    return _masked(q, k, v, shared_prompt, scaling, dropout, window)[None], None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _repeat(x: Tensor, repeats: int) -> Tensor:
    """[1, H, T, d] -> [1, H * repeats, T, d]: grouped-query attention, spelt out."""
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def _masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Group by group with a boolean mask: any device, dropout and sliding windows. [T, H, d] -> [T, H, d]."""
    outputs = []
    for start, _, end in layout.groups:
        segment, position = layout.segment[start:end], layout.position[start:end]
        distance = position[:, None] - position
        seen = (segment[:, None] == segment) | (segment == segment[0])
        seen &= (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
        output = scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scale)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


class _Blocks(torch.autograd.Function):
    """Attention in blocks that hold nothing masked, by the CPU's flash kernel, which returns the log-sum-exp.

    Every segment (prompt or response) attends to itself causally, in buckets of similar length; the responses
    of a group, side by side, attend to the whole prompt. The two are merged by their log-sum-exps. In the
    backward pass each block is given the *merged* output and log-sum-exp: the kernel rebuilds the
    probabilities as exp(score - log-sum-exp), so that its gradients are this block's share of the exact ones.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None) -> Tensor:
        """[T, H, d] -> [T, H, d]."""
        outputs, sums = [], []
        for bucket in layout.buckets:
            blocks = [_batch(x, bucket.tokens) for x in (query, key, value)]
            output, lse = _flash(*blocks, is_causal=True, scale=scale)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
            sums.append(lse.transpose(1, 2).flatten(0, 1))
        output, lse = torch.cat(outputs)[layout.slot], torch.cat(sums)[layout.slot]
        for start, boundary, end in layout.sharing:
            prompt, responses = slice(start, boundary), slice(boundary, end)
            other, other_lse = _flash(_row(query[responses]), _row(key[prompt]), _row(value[prompt]), scale=scale)
            own, own_lse = output[responses], lse[responses]
            other, other_lse = other[0].transpose(0, 1), other_lse[0].transpose(0, 1)
            share = torch.sigmoid(other_lse - own_lse)[..., None]
            own.lerp_(other, share.to(own.dtype))
            lse[responses] = torch.logaddexp(own_lse, other_lse)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        layout, scale = ctx.layout, ctx.scale
        parts: list[tuple[Tensor, ...]] = []
        for bucket in layout.buckets:
            blocks = [_batch(x, bucket.tokens) for x in (grad, query, key, value, output)]
            sums = lse[bucket.tokens].transpose(1, 2)
            if bucket.padding is not None:
                blocks[0].masked_fill_(bucket.padding[:, None, :, None], 0.0)
            found = _flash_backward(*blocks, sums, 0.0, True, scale=scale)
            parts.append(tuple(x.transpose(1, 2).flatten(0, 1) for x in found))
        totals = [torch.cat(part)[layout.slot] for part in zip(*parts, strict=True)]
        for start, boundary, end in layout.sharing:
            prompt, responses = slice(start, boundary), slice(boundary, end)
            taken = (responses, responses, prompt, prompt, responses)
            blocks = [_row(x[t]) for x, t in zip((grad, query, key, value, output), taken, strict=True)]
            found = _flash_backward(*blocks, _row(lse[responses]), 0.0, False, scale=scale)
            for total, at, share in zip(totals, (responses, prompt, prompt), found, strict=True):
                total[at] += share[0].transpose(0, 1)
        return (*totals, None, None)


def _batch(x: Tensor, tokens: Tensor) -> Tensor:
    """[T, H, d] at [n, L] -> [n, H, L, d]."""
    return x[tokens].transpose(1, 2)


def _row(x: Tensor) -> Tensor:
    """[t, H, d] -> [1, H, t, d]; [t, H] -> [1, H, t]."""
    return x.transpose(0, 1)[None]
