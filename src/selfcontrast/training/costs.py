"""The cost of a training step: floating-point operations by formula, and peak memory."""

import math
import resource
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from selfcontrast.models.packing import PackedGroups


@dataclass(frozen=True)
class Cost:
    """Model FLOPs of a training step (arXiv 2204.02311, appendix B), without recomputation.

    A matrix costs 2 FLOPs per weight and token forward, 2 backward for the gradient of its input, and 2 for its own
    gradient if it is trained: 6 N for full training, 4 N for frozen weights under LoRA. Embeddings cost nothing. The
    output layer runs over response tokens only. A mixture of experts counts every expert, a sliding window counts the
    whole row, and linear attention counts as full attention.

    Attributes:
        body: FLOPs per token of the row, for all matrices but embeddings and the output layer.
        head: FLOPs per response token.
        attention: FLOPs per pair of a token and a token that it attends to: 12 x layers x heads x head width.
    """

    body: int
    head: int
    attention: int

    @classmethod
    def of(cls, policy: Any) -> "Cost":
        output = policy.get_output_embeddings().weight
        excluded = {id(m.weight) for m in policy.modules() if isinstance(m, nn.Embedding)} | {id(output)}
        body = sum(_per_token(p) for p in policy.parameters() if p.ndim >= 2 and id(p) not in excluded)
        config = policy.config
        heads = getattr(config, "num_attention_heads", 0)  # none in a state-space model
        width = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
        attention = 12 * config.num_hidden_layers * heads * width
        return cls(body, _per_token(output), attention)

    def flops(self, packed: PackedGroups) -> int:
        """Return the FLOPs of one forward and backward pass, without reading the device."""
        pairs = packed.layout.attended
        return self.body * packed.input_ids.numel() + self.head * packed.labels.numel() + self.attention * pairs


def _per_token(matrix: nn.Parameter) -> int:
    state = getattr(matrix, "quant_state", None)  # a 4-bit matrix stores two weights per number
    return (6 if matrix.requires_grad else 4) * (matrix.numel() if state is None else math.prod(state.shape))


def peak_memory(device: torch.device | None = None) -> float:
    """Return peak memory in GiB: of tensors on this GPU, else of this process since its start."""
    if device is not None and device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2 ** (30 if sys.platform == "darwin" else 20), 3)  # Linux counts in KiB, macOS in bytes
