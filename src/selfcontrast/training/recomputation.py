"""Gradient checkpointing: which activations are kept for the backward pass, and which are recomputed."""

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
_PRODUCTS = {
    torch.ops.aten.mm.default: 1,
    torch.ops.aten.addmm.default: 2,
}  # index of the matrix among the operation's arguments


def checkpoint_layers(policy: Any, mode: Checkpointing) -> None:
    """Recompute the activations of each layer in the backward pass.

    Args:
        policy: a transformers causal model, or its peft wrapper.
        mode: True to recompute all; "selective" to keep the results of attention and of the matrices before and after
            it. Results of the MLP are recomputed: its inner layer is a few times as wide, and the backward pass does
            not need its last product.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(
            create_selective_checkpoint_contexts, partial(_checkpoint_policy, widest_kept(policy.config))
        )
    policy.gradient_checkpointing_enable(options)


def widest_kept(config: Any) -> int:
    """Return the larger of the model's hidden size and the total width of its attention heads."""
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return max(int(text.hidden_size), int(width * text.num_attention_heads))


def is_kept(width: int, operation: Any, args: tuple[Any, ...]) -> bool:
    """Return True if selective checkpointing keeps an operation's result.

    A product is kept if no side of its matrix is longer than `width`. Per byte, these products save as many FLOPs as an
    MLP's, but they need fewer bytes in total.
    """
    if operation in _PRODUCTS:
        return bool(max(args[_PRODUCTS[operation]].shape) <= width)
    return operation in _ATTENTION


def _checkpoint_policy(width: int, context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_kept(width, operation, args) else CheckpointPolicy.PREFER_RECOMPUTE
