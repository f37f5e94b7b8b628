"""Samples N responses per prompt with transformers: the prompt is computed once, its key cache serves all N.

Every response is drawn by inverse transform from uniform numbers that depend on (seed, prompt id, sample, position)
alone, so what is sampled does not depend on which prompts share a batch, on its size, or on where a run was resumed.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from selfcontrast.data.candidates import Candidate, Decoding, Request
from selfcontrast.errors import UserError

BLOCK = 64  # tokens whose probabilities are summed before the running sum


def uniforms(seed: int, request: Request, decoding: Decoding) -> Tensor:
    """The numbers in [0, 1) that decide a prompt's responses, float64 [N, max_new_tokens]."""
    digest = hashlib.sha256(f"{seed}\0{request.id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    shape = (decoding.samples, decoding.max_new_tokens)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@torch.inference_mode()
def sample(
    model: Any,
    tokenizer: Any,
    requests: Sequence[Request],
    decoding: Decoding,
    seed: int,
    end_ids: Collection[int],
    samples: range | None = None,
) -> list[Candidate]:
    """The responses to a batch of prompts, in the order of the requests.

    Args:
        model: a causal model of transformers in evaluation mode.
        end_ids: tokens that end a response; the one that did is its last.
        samples: which of the N responses of each prompt; None for all.

    Raises:
        UserError: for a model whose probabilities are NaN, with the prompt's id.
    """
    drawn = range(decoding.samples) if samples is None else samples
    noise = torch.cat([uniforms(seed, request, decoding)[drawn.start : drawn.stop] for request in requests])  # [R, T]
    run = _Run(model, tokenizer.pad_token_id, len(tokenizer), requests, len(drawn))
    ends = torch.tensor(sorted(end_ids), device=model.device)
    room = torch.tensor([decoding.max_length - len(r.prompt) for r in requests]).clamp(max=decoding.max_new_tokens)
    room = room.repeat_interleave(len(drawn))
    responses: list[list[int]] = [[] for _ in noise]
    log_probs = torch.zeros(len(noise), dtype=torch.float64)
    finished = ["length"] * len(noise)
    model_log_probs = run.log_probs
    if (broken := model_log_probs.isnan().any(-1)).any():
        name = requests[int(broken.int().argmax()) // len(drawn)].id
        raise UserError(
            f"the model's probabilities after prompt {name!r} are NaN: its training diverged, or its file is damaged"
        )
    for position in range(int(room.max())):
        rows = run.rows
        tokens = draw(model_log_probs, noise[rows, position].to(model_log_probs.device), decoding)
        log_probs[rows] += model_log_probs.gather(-1, tokens[:, None])[:, 0].double().cpu()
        ended = torch.isin(tokens, ends).cpu()
        for row, token, end in zip(rows.tolist(), tokens.tolist(), ended.tolist(), strict=True):
            responses[row].append(token)
            if end:
                finished[row] = "stop"
        going = ~ended & (position + 1 < room[rows])
        if not bool(going.any()):
            break
        model_log_probs = run.step(tokens, going)
    return [
        Candidate(
            id=requests[row // len(drawn)].id,
            sample=drawn[row % len(drawn)],
            text=str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
            token_ids=ids,
            finish_reason=finished[row],
            log_prob=float(log_probs[row]),
        )
        for row, ids in enumerate(responses)
    ]


def draw(log_probs: Tensor, uniform: Tensor, decoding: Decoding) -> Tensor:
    """Token ids [n] from log-probabilities [n, V], by inverse transform of uniform numbers [n].

    Temperature 0 is greedy. Below 1, top_p keeps the likeliest tokens up to and including the one that reaches it.
    """
    if decoding.temperature == 0:
        return log_probs.argmax(-1)
    warm = decoding.temperature != 1
    probabilities = (log_probs / decoding.temperature).softmax(-1) if warm else log_probs.exp()
    if decoding.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= decoding.top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return _inverse(probabilities, uniform)


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices [n]: where the running sum of weights [n, V] first exceeds the share [n] of their whole.

    The sums of blocks are searched first, then one block: only that one's running sum is ever made.
    """
    blocks = F.pad(weights, (0, -weights.shape[-1] % BLOCK)).view(len(weights), -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # [n, V / BLOCK]
    threshold = uniform[:, None] * sums[:, -1:]
    block = _first_above(sums, threshold)
    before = F.pad(sums, (1, 0)).gather(-1, block)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    return (block * BLOCK + _first_above(inside, threshold - before))[:, 0]


def _first_above(sums: Tensor, threshold: Tensor) -> Tensor:
    """Indices [n, 1] into running sums [n, m]. Rounding never carries it past the last weight that is not zero."""
    below = sums[:, -1:] * (1 - 2**-53)
    return torch.searchsorted(sums, threshold.minimum(below), right=True)


class _Run:
    """The key cache of the responses still going, and which they are."""

    def __init__(self, model: Any, pad: int, tokens: int, requests: Sequence[Request], samples: int) -> None:
        self.model = model
        self.tokens = tokens  # that the tokenizer has
        longest = max(len(request.prompt) for request in requests)
        padded = [[pad] * (longest - len(r.prompt)) + r.prompt for r in requests]
        mask = [[0] * (longest - len(r.prompt)) + [1] * len(r.prompt) for r in requests]
        self.mask = torch.tensor(mask, device=model.device)
        self.positions = self.mask.sum(-1, keepdim=True)
        output = model(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache: Any = getattr(output, "past_key_values", None)
        if self.cache is None:
            raise UserError(
                f"model type {model.config.model_type!r} keeps its state in a way of its own, which sampling here does "
                "not know: use generator=vllm and backend@evaluation.backend=vllm"
            )
        self.cache.layers = [_repeated(layer, samples) for layer in self.cache.layers]
        self.mask = self.mask.repeat_interleave(samples, dim=0)
        self.positions = self.positions.repeat_interleave(samples, dim=0)
        self.log_probs = _log_probs(output.logits, self.tokens).repeat_interleave(samples, dim=0)
        self.rows = torch.arange(len(requests) * samples)

    def step(self, tokens: Tensor, going: Tensor) -> Tensor:
        """Log-probabilities [n, V] after `tokens`, for the rows that are still going."""
        # Finished rows go at once: what is left of the batch is what is computed.
        if not bool(going.all()):
            left = _closed(going)
            kept = left.to(self.mask.device)
            for layer in self.cache.layers:
                _select(layer, kept)
            self.mask, self.positions, tokens = self.mask[kept], self.positions[kept], tokens[kept]
            self.rows = self.rows[left]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions = self.positions + 1
        return _log_probs(output.logits, self.tokens)


def _log_probs(logits: Tensor, tokens: int) -> Tensor:
    """Of the last position, float32 [n, V], at temperature 1.

    Models pad their vocabulary: ids that the tokenizer lacks have no text and are never drawn.
    """
    last = logits[:, -1].float()
    if tokens < last.shape[-1]:
        last[:, tokens:] = -torch.inf
    return last.log_softmax(-1)


def _closed(going: Tensor) -> Tensor:
    """Indices of the rows still going, the last of them in the places of those that are not: most keep their own."""
    count = int(going.sum())
    order = torch.arange(count)
    order[~going[:count]] = count + going[count:].nonzero()[:, 0]
    return order


def _repeated(layer: Any, samples: int) -> Any:
    """The cache of N responses per prompt. Layers of another kind, such as sliding windows, keep their own way."""
    if type(layer) is DynamicLayer:
        return _Roomy(layer, samples)
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        states = [
            state for state in (*layer.conv_states.values(), *layer.recurrent_states.values()) if state is not None
        ]
        _select(layer, torch.arange(len(states[0]), device=states[0].device).repeat_interleave(samples))
    else:
        layer.batch_repeat_interleave(samples)
    return layer


def _select(layer: Any, indices: Tensor) -> None:
    """Give a layer's cache these rows of its own. Recurrent states have another method for it than keys."""
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        layer.reorder_cache(indices)
    else:
        layer.batch_select_indices(indices)


class _Roomy(DynamicLayer):
    """Keys and values [R, heads, length, size] with room behind them: a step writes its token, and copies nothing."""

    room = 32  # tokens

    def __init__(self, layer: DynamicLayer, samples: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.length: int = layer.keys.shape[-2]
        self.held: list[Tensor] = [self._spread(prompts, samples) for prompts in (layer.keys, layer.values)]
        self._show()

    def _spread(self, prompts: Tensor, samples: int) -> Tensor:
        """Every row `samples` times, and room behind it, in the one copy that there is of a prompt's keys."""
        rows, heads, length, size = prompts.shape
        held = prompts.new_empty(rows, samples, heads, length + self.room, size)
        held[..., :length, :] = prompts[:, None]
        return held.flatten(0, 1)

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + keys.shape[-2]
        if self.length > self.held[0].shape[-2]:
            more = [held.new_empty(*held.shape[:2], self.room, held.shape[-1]) for held in self.held]
            self.held = [torch.cat(pair, dim=-2) for pair in zip(self.held, more, strict=True)]
        for held, new in zip(self.held, (keys, values), strict=True):
            held[..., start : self.length, :] = new
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Copies the rows that change their place, and no others."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for held in self.held:
            held[moved] = held[indices[moved]]
        self.held = [held[: len(indices)] for held in self.held]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (held[..., : self.length, :] for held in self.held)
        return self.keys, self.values
