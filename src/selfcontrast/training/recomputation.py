"""Gradient checkpointing: what of a decoder's layers is kept for the backward pass, and what is computed again."""

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from selfcontrast.models.attention import varlen

Checkpointing = bool | Literal["selective"]

_ATTENTION = {
    varlen.merged_attention._opoverload,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
_PRODUCTS = {torch.ops.aten.mm.default: 1, torch.ops.aten.addmm.default: 2}  # which argument is the second factor


def checkpoint_layers(policy: Any, how: Checkpointing) -> None:
    """Recompute the activations of each layer in the backward pass.

    Args:
        policy: a causal model of transformers, or its peft wrapper.
        how: True for all of them; "selective" to keep the outputs of attention and of the matrices around it. An MLP's
            inner layer is a few times as wide, and of its last product nothing is needed again.
    """
    own: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        own["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, widest_kept(policy.config)))
    policy.gradient_checkpointing_enable(own)


def widest_kept(config: Any) -> int:
    """The width of a token in the model, or in all heads of its attention where that is more."""
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return max(int(text.hidden_size), int(width * text.num_attention_heads))


def is_kept(width: int, operation: Any, args: tuple[Any, ...]) -> bool:
    """Whether selective checkpointing keeps what an operation returns; `width` is the widest of a product's two sides.

    Kept, each byte of these products saves as many FLOPs as one of an MLP's, and there are fewer of them.
    """
    if operation in _PRODUCTS:
        return bool(max(args[_PRODUCTS[operation]].shape) <= width)
    return operation in _ATTENTION


def _policy(width: int, context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_kept(width, operation, args) else CheckpointPolicy.PREFER_RECOMPUTE
