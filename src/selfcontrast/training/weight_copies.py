"""bfloat16 copies of a policy's matrices, made once per step.

Autocast casts every matrix once per micro-batch, or twice if layers are recomputed. Results are bit-equal to
autocast's: the same products of the same rounded weights, and gradients that are rounded once and summed in float32.
Weights, checkpoints and the optimiser's state stay in float32.
"""

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn.functional import linear


class WeightCopies:
    """bfloat16 copies of the weights of all float32 linear layers except the output layer.

    The layers compute with the copies. Autocast must be on, because it casts the inputs.

    Args:
        policy: a transformers causal model, or its peft wrapper.
    """

    def __init__(self, policy: Any) -> None:
        head = policy.get_output_embeddings()
        self.layers: list[Any] = [
            m for m in policy.modules() if type(m) is nn.Linear and m is not head and m.weight.dtype == torch.float32
        ]
        for layer in self.layers:
            layer.bf16_copy = layer.weight.detach().bfloat16()  # not a buffer, so that ranks do not exchange it
            layer.__class__ = _CopiedLinear  # a class instead of a closure, so that all layers compile to one graph

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights again after an update."""
        torch._foreach_copy_([layer.bf16_copy for layer in self.layers], [layer.weight for layer in self.layers])

    def remove(self) -> None:
        """Let the layers compute with their float32 weights again."""
        for layer in self.layers:
            layer.__class__ = nn.Linear
            del layer.bf16_copy
        self.layers = []


class WeightCopyCallback(Callback):
    """Train with copies, refreshed before each step and each validation."""

    def __init__(self) -> None:
        self.copies: WeightCopies | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.copies = WeightCopies(pl_module.policy)

    def on_train_batch_start(self, *_: Any) -> None:
        self._refresh()

    def on_validation_start(self, *_: Any) -> None:
        self._refresh()

    def on_train_end(self, *_: Any) -> None:
        self._remove()

    def on_exception(self, *_: Any) -> None:
        self._remove()

    def _refresh(self) -> None:
        if self.copies is not None:
            self.copies.refresh()

    def _remove(self) -> None:
        if self.copies is not None:
            self.copies.remove()


class _CopiedLinear(nn.Linear):
    bf16_copy: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = _RoundToCopy.apply(self.weight, self.bf16_copy)  # type: ignore[no-untyped-call]
        return linear(x, rounded, self.bias)


class _RoundToCopy(torch.autograd.Function):
    """A cast of a weight to bfloat16 that returns an existing copy."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return grad.float(), None
