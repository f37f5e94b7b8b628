"""Compute log-probabilities of response tokens without the logits of a whole row.

The decoder's body runs over the packed row. The output layer runs only over the hidden states that predict a response
token, one chunk at a time. Forward and backward only ever hold the logits of one chunk, [chunk_size, V].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfcontrast.errors import UserError
from selfcontrast.models.packing import Group, PackedGroups, pack, sum_per_response
from selfcontrast.models.shared_prompt import forward_packed, use_shared_prompt

# Config keys for changes of the logits after the output layer: factors, divisors, and the caps of
# cap * tanh(logit / cap). Each may be None.
_FACTORS, _DIVISORS = ("logit_scale", "lm_head_multiplier"), ("logits_scaling",)
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

# Number of logits that a CPU processes at a time: 2 MiB of float32, about a core's cache.
_LOGITS_IN_CACHE = 2**19


def token_log_probs(model: nn.Module, packed: PackedGroups, chunk_size: int) -> Tensor:
    """Return log p(token | prompt, response so far) of every response token, float32 [n], in the packed row's order.

    Args:
        model: a causal language model of transformers, or its peft wrapper; it stays in shared-prompt mode.
        packed: packed groups, on the model's device.
        chunk_size: number of tokens whose logits are in memory at a time.

    Raises:
        UserError: if the model is not causal, or its output layer is not linear.
    """
    use_shared_prompt(model)
    weight, bias = _output_layer(model)
    change = LogitChange.of(model.config)
    decoder = model.get_decoder()  # type: ignore[operator]
    hidden = forward_packed(decoder, packed.input_ids, packed.position_ids, packed.layout)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    states = hidden.index_select(0, packed.predictors)
    with torch.autocast(device, enabled=False):
        values: Tensor = _ChunkedLogProbs.apply(  # type: ignore[no-untyped-call]
            states, weight, bias, packed.labels, chunk_size, dtype, change
        )
    return values


def response_log_probs(model: nn.Module, packed: PackedGroups, chunk_size: int) -> Tensor:
    """Return log p(response | prompt), summed over tokens, float32 [B, K+1]; 0 for a missing negative."""
    return sum_per_response(token_log_probs(model, packed, chunk_size), packed)


@torch.no_grad()
def self_check(model: nn.Module, groups: Sequence[Group], tolerance: float) -> float:
    """Compare packed log-probabilities of the longest group with those of separate rows in the plain forward pass.

    Args:
        tolerance: in nats; 1e-3 is ample in float32, bfloat16 needs about 0.2.

    Returns:
        The largest difference of a token's log-probability, in nats.

    Raises:
        UserError: if this difference exceeds `tolerance`.
    """
    group = max(groups, key=lambda g: len(g.prompt) + sum(map(len, g.responses)))
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    packed = token_log_probs(model, pack([group]).to(device), chunk_size=1024)
    rows = torch.cat([_row_log_probs(model, group.prompt, response, device) for response in group.responses])
    model.train(training)
    difference = float((packed - rows).abs().max())
    if not difference <= tolerance:  # not `>`: NaN must raise, too
        raise UserError(
            f"self-check: packed and separate log-probabilities of group {group.id} differ by {difference:.3g} nats "
            f"(tolerance {tolerance:g}), so this model cannot be trained with packed rows. "
            "Use another model (Llama, Mistral, Qwen, GPT-2); in low precision, raise the tolerance."
        )
    return difference


def _row_log_probs(model: nn.Module, prompt: Sequence[int], response: Sequence[int], device: torch.device) -> Tensor:
    """Return log-probabilities [R] of one response in a separate row, by the plain forward pass."""
    row = torch.tensor([[*prompt, *response]], device=device)
    logits: Tensor = model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(-1, row[0, len(prompt) :, None])[:, 0]


@dataclass(frozen=True)
class LogitChange:
    """The change of logits after the output layer: multiply by `scale`, then bound by cap * tanh(logit / cap)."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "LogitChange":
        text = config.get_text_config()

        def values(names: Sequence[str]) -> list[float]:
            return [value for name in names if isinstance(value := getattr(text, name, None), int | float)]

        return cls(math.prod(values(_FACTORS)) / math.prod(values(_DIVISORS)), next(iter(values(_CAPS)), None))

    def apply(self, logits: Tensor) -> Tensor:
        """Change logits in place and return them."""
        if self.scale != 1:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return the derivative of the changed `logits` with respect to the original ones."""
        return self.scale if self.cap is None else (1 - (logits / self.cap).square()).mul_(self.scale)


def _output_layer(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear:
        raise UserError(
            f"the output layer is a {type(head).__name__}, not a plain Linear. "
            "Leave it out of LoRA's target_modules and modules_to_save."
        )
    return head.weight, head.bias


class _ChunkedLogProbs(torch.autograd.Function):
    """log_softmax(hidden @ weight.T + bias)[label], with the logits of one chunk at a time.

    The gradient of a token's logits is g (onehot - softmax). The backward pass recomputes the logits, except those of
    the last chunk, which are kept: one chunk fits into memory anyway, and often there is only one.
    """

    @staticmethod
    def forward(  # noqa: PLR0913  # autograd passes no keywords
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        chunk_size: int,
        dtype: torch.dtype,
        change: LogitChange = LogitChange(),
    ) -> Tensor:
        """Map hidden [n, D], weight [V, D], bias [V], labels [n] to [n], in float32 (float64 from float64)."""
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        values, sums = [], []
        logits = None
        for start in range(0, len(inputs), chunk_size):
            chunk = slice(start, start + chunk_size)
            logits = None  # free the previous chunk before the next is allocated
            logits = change.apply(_logits(inputs[chunk], matrix, bias))
            sums.append(_logsumexp(logits))
            values.append(logits.gather(-1, labels[chunk, None])[:, 0] - sums[-1])
        ctx.save_for_backward(hidden, weight, bias, labels, torch.cat(sums))
        ctx.chunk_size, ctx.dtype, ctx.change = chunk_size, dtype, change
        ctx.kept = logits if any(ctx.needs_input_grad[:3]) else None
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, sums = ctx.saved_tensors
        inputs, matrix = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(inputs) if needs_hidden else None
        grad_weight = grad_bias = None
        for start in reversed(range(0, len(inputs), ctx.chunk_size)):
            chunk = slice(start, start + ctx.chunk_size)
            logits, ctx.kept = ctx.kept, None
            if logits is None:
                logits = ctx.change.apply(_logits(inputs[chunk], matrix, bias))
            change_slope = ctx.change.slope(logits)
            slope = logits.sub_(sums[chunk, None]).exp_().mul_(-grad[chunk, None])
            slope.scatter_add_(-1, labels[chunk, None], grad[chunk, None])
            if ctx.change.scale != 1 or ctx.change.cap is not None:
                slope.mul_(change_slope)
            if needs_bias:
                grad_bias = _accumulate(grad_bias, slope.sum(0))
            slope = slope.to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = slope @ matrix
            if needs_weight:
                grad_weight = _accumulate(grad_weight, _product(slope.T, inputs[chunk]))
            del logits, slope, change_slope
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return logits [n, V], at least in float32."""
    logits = _product(hidden, weight.T)
    return logits if bias is None else logits.add_(bias)


def _logsumexp(logits: Tensor) -> Tensor:
    """Reduce [n, V] to [n].

    On a CPU, blocks that fit its cache more than double the speed and avoid a temporary tensor.
    """
    rows = max(1, _LOGITS_IN_CACHE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    blocks = torch.split(logits, rows)
    return torch.cat([block.logsumexp(-1) for block in blocks])


def _accumulate(total: Tensor | None, term: Tensor) -> Tensor:
    """Add in place. The first term becomes the total, which saves a tensor of zeros as large as the output layer."""
    return term if total is None else total.add_(term)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, at least in float32.

    On a GPU the sums of low-precision products are not rounded. A CPU has no such operation: it rounds each sum once,
    to the dtype of the factors.
    """
    if a.dtype not in (torch.bfloat16, torch.float16):
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()
