"""bfloat16 copies of a policy's matrices, made once per step: autocast casts every matrix in every pass, twice where
layers are recomputed.

The arithmetic is autocast's to the last bit: the same products of the same rounded weights, and gradients that are
rounded once and added up in float32. Weights, checkpoints and the optimiser's state stay in float32.
"""

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn.functional import linear


class WeightCopies:
    """Copies of the float32 matrices of all linear layers but the output layer, which the layers compute with.

    Inputs are cast by autocast, which must be on.

    Args:
        policy: a causal model of transformers, or its peft wrapper.
    """

    def __init__(self, policy: Any) -> None:
        head = policy.get_output_embeddings()
        self.layers: list[Any] = [
            m for m in policy.modules() if type(m) is nn.Linear and m is not head and m.weight.dtype == torch.float32
        ]
        for layer in self.layers:
            layer.bf16_copy = layer.weight.detach().bfloat16()  # no buffer: ranks do not exchange it
            layer.__class__ = _Linear  # a class and no closure: compiled, all layers are one graph

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights again, after an update."""
        torch._foreach_copy_([layer.bf16_copy for layer in self.layers], [layer.weight for layer in self.layers])

    def remove(self) -> None:
        """Let the layers compute with their own weights again."""
        for layer in self.layers:
            layer.__class__ = nn.Linear
            del layer.bf16_copy
        self.layers = []


class UseCopies(Callback):
    """Trains by copies, refreshed before each step and each validation."""

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


class _Linear(nn.Linear):
    bf16_copy: Tensor

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = _Rounded.apply(self.weight, self.bf16_copy)  # type: ignore[no-untyped-call]
        return linear(x, rounded, self.bias)


class _Rounded(torch.autograd.Function):
    """The cast of a weight to bfloat16, whose result is there already."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return grad.float(), None
