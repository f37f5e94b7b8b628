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

    Per weight and token, a matrix costs 2 FLOPs in the forward pass, and 2 in the backward pass for its input's
    gradient. A trained matrix costs 2 more for its own gradient. So N weights cost 6 N per token, or 4 N if frozen
    (LoRA). Embeddings cost nothing. The output layer runs over response tokens only. Every expert of a mixture counts,
    a sliding window counts as the whole row, and linear attention counts as full attention.

    Attributes:
        body: FLOPs per token of the row, for all matrices except embeddings and the output layer.
        head: FLOPs per response token.
        attention: FLOPs per (token, attended token) pair: 12 x layers x heads x head width.
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
        heads = getattr(config, "num_attention_heads", 0)  # a state-space model has none
        width = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
        attention = 12 * config.num_hidden_layers * heads * width
        return cls(body, _per_token(output), attention)

    def flops(self, packed: PackedGroups) -> int:
        """Return the FLOPs of one forward and backward pass, without waiting for the device."""
        pairs = packed.layout.attended
        return self.body * packed.input_ids.numel() + self.head * packed.labels.numel() + self.attention * pairs


def _per_token(matrix: nn.Parameter) -> int:
    state = getattr(matrix, "quant_state", None)  # a 4-bit matrix stores two weights per number
    return (6 if matrix.requires_grad else 4) * (matrix.numel() if state is None else math.prod(state.shape))


def peak_memory(device: torch.device | None = None) -> float:
    """Return peak memory in GiB: of the tensors on this GPU; without a GPU, of this process since its start."""
    if device is not None and device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2 ** (30 if sys.platform == "darwin" else 20), 3)  # Linux counts in KiB, macOS in bytes
