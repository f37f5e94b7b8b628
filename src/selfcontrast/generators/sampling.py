"""Sample N responses per prompt with transformers. The prompt is computed once, and its KV cache serves all N.

Responses are drawn by inverse transform from uniform numbers that depend on (seed, prompt id, sample, position) alone.
So the samples do not depend on the batch size, on the other prompts of the batch, or on where a run was resumed.
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
from selfcontrast.progress import advance_unsaved

BLOCK = 64  # tokens per block sum in `_inverse`


def uniforms(seed: int, request: Request, decoding: Decoding) -> Tensor:
    """Return the numbers in [0, 1) that determine a prompt's responses, float64 [N, max_new_tokens]."""
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
    """Sample the responses to a batch of prompts, in the order of the requests.

    Args:
        model: a causal model of transformers in evaluation mode.
        end_ids: tokens that end a response and are its last token.
        samples: the sample numbers to draw for each prompt; None for all N.

    Raises:
        UserError: if the model's probabilities are NaN, with the prompt's id.
    """
    numbers = range(decoding.samples) if samples is None else samples
    uniform = torch.cat([uniforms(seed, r, decoding)[numbers.start : numbers.stop] for r in requests])  # [R, T]
    cache = _ResponseCache(model, tokenizer.pad_token_id, len(tokenizer), requests, len(numbers))
    ends = torch.tensor(sorted(end_ids), device=model.device)
    room = torch.tensor([decoding.max_length - len(r.prompt) for r in requests]).clamp(max=decoding.max_new_tokens)
    room = room.repeat_interleave(len(numbers))
    responses: list[list[int]] = [[] for _ in uniform]
    log_probs = torch.zeros(len(uniform), dtype=torch.float64)
    finish_reasons = ["length"] * len(uniform)
    model_log_probs = cache.log_probs
    if (broken := model_log_probs.isnan().any(-1)).any():
        id_ = requests[int(broken.int().argmax()) // len(numbers)].id
        raise UserError(
            f"the model's probabilities after prompt {id_!r} are NaN: its training diverged, or its files are damaged. "
            "Train the model with a lower learning rate, or use another one."
        )
    for position in range(int(room.max())):
        rows = cache.rows
        tokens = draw(model_log_probs, uniform[rows, position].to(model_log_probs.device), decoding)
        log_probs[rows] += model_log_probs.gather(-1, tokens[:, None])[:, 0].double().cpu()
        ended = torch.isin(tokens, ends).cpu()
        for row, token, end in zip(rows.tolist(), tokens.tolist(), ended.tolist(), strict=True):
            responses[row].append(token)
            if end:
                finish_reasons[row] = "stop"
        active = ~ended & (position + 1 < room[rows])
        advance_unsaved(int((~active).sum()), "response")
        if not bool(active.any()):
            break
        model_log_probs = cache.step(tokens, active)
    return [
        Candidate(
            id=requests[row // len(numbers)].id,
            sample=numbers[row % len(numbers)],
            text=str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
            token_ids=ids,
            finish_reason=finish_reasons[row],
            log_prob=float(log_probs[row]),
        )
        for row, ids in enumerate(responses)
    ]


def draw(log_probs: Tensor, uniform: Tensor, decoding: Decoding) -> Tensor:
    """Draw token ids [n] from log-probabilities [n, V], by inverse transform of uniform numbers [n].

    Temperature 0 is greedy. With top_p below 1, only the likeliest tokens can be drawn, up to and including the one
    that reaches top_p.
    """
    if decoding.temperature == 0:
        return log_probs.argmax(-1)
    scaled = decoding.temperature != 1
    probabilities = (log_probs / decoding.temperature).softmax(-1) if scaled else log_probs.exp()
    if decoding.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= decoding.top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return _inverse(probabilities, uniform)


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return indices [n]: where the running sum of weights [n, V] first exceeds the fraction `uniform` [n] of the sum.

    The sums of blocks are searched first, and then one block. So only one block's running sum is computed.
    """
    blocks = F.pad(weights, (0, -weights.shape[-1] % BLOCK)).view(len(weights), -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # [n, V / BLOCK]
    threshold = uniform[:, None] * sums[:, -1:]
    block = _first_above(sums, threshold)
    before = F.pad(sums, (1, 0)).gather(-1, block)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    return (block * BLOCK + _first_above(inside, threshold - before))[:, 0]


def _first_above(sums: Tensor, threshold: Tensor) -> Tensor:
    """Return indices [n, 1] into running sums [n, m]. Despite rounding, none is beyond the last nonzero weight."""
    below = sums[:, -1:] * (1 - 2**-53)
    return torch.searchsorted(sums, threshold.minimum(below), right=True)


class _ResponseCache:
    """The KV cache of the unfinished responses, and their row numbers."""

    def __init__(self, model: Any, pad: int, vocabulary: int, requests: Sequence[Request], samples: int) -> None:
        self.model = model
        self.vocabulary = vocabulary  # size of the tokenizer
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
                f"generator=hf does not support the cache of model type {model.config.model_type!r}. "
                "Use generator=vllm and backend@evaluation.backend=vllm."
            )
        self.cache.layers = [_repeat(layer, samples) for layer in self.cache.layers]
        self.mask = self.mask.repeat_interleave(samples, dim=0)
        self.positions = self.positions.repeat_interleave(samples, dim=0)
        self.log_probs = _log_probs(output.logits, self.vocabulary).repeat_interleave(samples, dim=0)
        self.rows = torch.arange(len(requests) * samples)

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        """Append each active row's token and return the log-probabilities [n, V] of the next one."""
        # Finished rows leave the batch at once and cost nothing more.
        if not bool(active.all()):
            indices = _compact(active)
            kept = indices.to(self.mask.device)
            for layer in self.cache.layers:
                _select(layer, kept)
            self.mask, self.positions, tokens = (
                self.mask[kept],
                self.positions[kept],
                tokens[kept],
            )
            self.rows = self.rows[indices]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions = self.positions + 1
        return _log_probs(output.logits, self.vocabulary)


def _log_probs(logits: Tensor, vocabulary: int) -> Tensor:
    """Return the log-probabilities of the last position, float32 [n, V], at temperature 1.

    Models pad their vocabulary. Ids that are not in the tokenizer have no text and are never drawn.
    """
    last = logits[:, -1].float()
    if vocabulary < last.shape[-1]:
        last[:, vocabulary:] = -torch.inf
    return last.log_softmax(-1)


def _compact(active: Tensor) -> Tensor:
    """Return the indices of the active rows. The last ones replace the inactive ones, so most rows keep their index."""
    count = int(active.sum())
    order = torch.arange(count)
    order[~active[:count]] = count + active[count:].nonzero()[:, 0]
    return order


def _repeat(layer: Any, samples: int) -> Any:
    """Return a layer's cache for N responses per prompt.

    Layers of other kinds, such as sliding windows, repeat their cache with their own method.
    """
    if type(layer) is DynamicLayer:
        return _PreallocatedCache(layer, samples)
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        states = [
            state for state in (*layer.conv_states.values(), *layer.recurrent_states.values()) if state is not None
        ]
        _select(layer, torch.arange(len(states[0]), device=states[0].device).repeat_interleave(samples))
    else:
        layer.batch_repeat_interleave(samples)
    return layer


def _select(layer: Any, indices: Tensor) -> None:
    """Select rows of a layer's cache. The method for recurrent states differs from that for keys."""
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        layer.reorder_cache(indices)
    else:
        layer.batch_select_indices(indices)


class _PreallocatedCache(DynamicLayer):
    """Keys and values [R, heads, length, size] with free space at the end: a step writes its token without copying."""

    room = 32  # tokens of free space

    def __init__(self, layer: DynamicLayer, samples: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.length: int = layer.keys.shape[-2]
        self.buffers: list[Tensor] = [self._allocate(prompts, samples) for prompts in (layer.keys, layer.values)]
        self._update_views()

    def _allocate(self, prompts: Tensor, samples: int) -> Tensor:
        """Copy every row `samples` times into a buffer with free space. A prompt's keys are copied only here."""
        rows, heads, length, size = prompts.shape
        buffer = prompts.new_empty(rows, samples, heads, length + self.room, size)
        buffer[..., :length, :] = prompts[:, None]
        return buffer.flatten(0, 1)

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + keys.shape[-2]
        if self.length > self.buffers[0].shape[-2]:
            extra = [buffer.new_empty(*buffer.shape[:2], self.room, buffer.shape[-1]) for buffer in self.buffers]
            self.buffers = [torch.cat(pair, dim=-2) for pair in zip(self.buffers, extra, strict=True)]
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[..., start : self.length, :] = new
        return self._update_views()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Copy only the rows that change their index."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for buffer in self.buffers:
            buffer[moved] = buffer[indices[moved]]
        self.buffers = [buffer[: len(indices)] for buffer in self.buffers]
        self._update_views()

    def _update_views(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[..., : self.length, :] for buffer in self.buffers)
        return self.keys, self.values
