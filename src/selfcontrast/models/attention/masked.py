"""Masked attention, group by group: on any device, with dropout and sliding windows; the slowest implementation."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from selfcontrast.models.packing import Layout


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """Map query, key and value [1, H, T, d] to [1, T, H, d]."""
    outputs = []
    for start, _, end in layout.groups:
        q, k, v = (x[:, :, start:end] for x in (query, key, value))
        mask = visible(layout, slice(start, end), window)
        output = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def visible(layout: Layout, group: slice, window: int | None) -> Tensor:
    """Return the mask of a group, [t, t] bool: True where a token (row) sees another (column)."""
    segment, position = layout.segment[group], layout.position[group]
    distance = position[:, None] - position
    mask = (segment[:, None] == segment) | (segment == segment[0])
    return mask & (distance >= 0) if window is None else mask & (distance >= 0) & (distance < window)
