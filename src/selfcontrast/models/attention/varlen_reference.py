"""Reference implementation of `varlen`'s two operations in plain tensor operations, for tests on a CPU.

It loops over sequences and computes in float32 (float64 from float64). Like a kernel, it rounds once to the dtype of
the inputs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def forward(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Map query [T, H, d], key and value [t, h, d] to output [T, H, d] and log-sum-exp [H, T].

    `query_ends` and `key_ends` are cumulative lengths, [S + 1].
    """
    output = torch.empty_like(query)
    lse = query.new_empty(query.shape[1], query.shape[0], dtype=_wide(query.dtype))
    for q, k in _sequences(query_ends, key_ends):
        scores = _scores(query[q], key[k], causal, scale)
        lse[:, q] = scores.logsumexp(-1)
        output[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), _repeat(value[k], query)).to(output.dtype)
    return output, lse


def backward(  # noqa: PLR0913  # the operation's own arguments
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, from output and log-sum-exp, which may include other keys."""
    grads = [torch.zeros_like(x) for x in (query, key, value)]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    dot = (_widen(grad) * _widen(output)).sum(-1).T  # [H, T]
    for q, k in _sequences(query_ends, key_ends):
        probabilities = (_scores(query[q], key[k], causal, scale) - lse[:, q, None]).exp()
        slope = torch.einsum("qhd,khd->hqk", _widen(grad[q]), _repeat(value[k], query)) - dot[:, q, None]
        slope = slope * probabilities * factor
        to_key = torch.einsum("hqk,qhd->khd", slope, _widen(query[q]))
        to_value = torch.einsum("hqk,qhd->khd", probabilities, _widen(grad[q]))
        grads[0][q] = torch.einsum("hqk,khd->qhd", slope, _repeat(key[k], query)).to(query.dtype)
        grads[1][k] = _sum_repeated(to_key, key).to(key.dtype)
        grads[2][k] = _sum_repeated(to_value, value).to(value.dtype)
    return grads[0], grads[1], grads[2]


def _sequences(query_ends: Tensor, key_ends: Tensor) -> Iterator[tuple[slice, slice]]:
    queries, keys = query_ends.tolist(), key_ends.tolist()
    for i in range(len(queries) - 1):
        yield slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])


def _scores(query: Tensor, key: Tensor, causal: bool, scale: float | None) -> Tensor:
    """Return scores [H, q, k] of query [q, H, d] and key [k, h, d]; causal needs as many queries as keys."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("qhd,khd->hqk", _widen(query), _repeat(key, query)) * factor
    if causal:
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores


def _repeat(x: Tensor, query: Tensor) -> Tensor:
    """Expand grouped heads, [k, h, d] -> [k, H, d]."""
    return _widen(x).repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _sum_repeated(grad: Tensor, x: Tensor) -> Tensor:
    """Sum over the copies of grouped heads, [k, H, d] -> [k, h, d]."""
    return grad.reshape(len(grad), x.shape[1], -1, grad.shape[-1]).sum(2)


def _widen(x: Tensor) -> Tensor:
    return x.to(_wide(x.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
