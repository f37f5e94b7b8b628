"""Build the workload of the benchmarks: models with random weights and groups of random tokens. Count its FLOPs."""

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from selfcontrast.data.formats import SkippedRow, recognise
from selfcontrast.models.packing import Group

CHARACTERS_PER_TOKEN = 4


def _qwen(hidden: int, layers: int, heads: int, shared: int, intermediate: int, vocabulary: int) -> PretrainedConfig:
    """Return a config with `shared` key and value heads."""
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )


def _llama(hidden: int, layers: int, heads: int, intermediate: int, vocabulary: int) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
        pad_token_id=None,
    )


MODELS = {
    "llama-13m": _llama(256, 6, 8, 704, 8192),
    "llama-0.4b": _llama(1024, 24, 16, 2816, 32000),
    "llama-7b": _llama(4096, 32, 32, 11008, 32000),
    "llama-7b-8-layers": _llama(4096, 8, 32, 11008, 32000),
    "qwen-0.5b": _qwen(896, 24, 14, 2, 4864, 151936),
    "qwen-tiny": _qwen(64, 2, 4, 2, 128, 512),
}


def random_model(name: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model directly on the device in this dtype, because 7B in bfloat16 is 14 GB."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(MODELS[name], dtype=dtype)
    return model.train()


def random_group(lengths: tuple[int, int, list[int]], vocabulary: int, draw: random.Random) -> Group:
    """Draw a group with these lengths of prompt, target and negatives. Every response ends with 0, the end of text."""

    def tokens(count: int) -> list[int]:
        return [draw.randrange(1, vocabulary) for _ in range(count)]

    prompt, target, negatives = lengths
    responses = [[*tokens(count - 1), 0] for count in (target, *negatives)]
    return Group("0", tokens(prompt), responses[0], responses[1:])


def dialogue_lengths(
    file: Path, count: int, negatives: int, longest: int, draw: random.Random
) -> list[tuple[int, int, list[int]]]:
    """Draw the lengths of `count` dialogues. Negatives are as long as random answers in the file."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    parse = recognise(rows[0])
    if parse is None:
        raise SystemExit(f"{file}: unknown row format. Give preference data such as hh-rlhf's.")
    dialogues = []
    for row in rows:
        try:
            parsed = parse(row)
        except SkippedRow:
            continue
        prompt = _tokens("".join(message["content"] for message in parsed.prompt))
        if prompt <= longest:
            dialogues.append((prompt, min(_tokens(parsed.target), longest)))
    answers = [target for _, target in dialogues]
    drawn = draw.sample(dialogues, count)
    return [(prompt, target, draw.choices(answers, k=negatives)) for prompt, target in drawn]


def _tokens(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN + 2  # including the end of the turn


@dataclass(frozen=True)
class Work:
    """The work of a forward and backward pass, without padding.

    Attributes:
        tokens: tokens that pass through the decoder.
        scored: positions that pass through the output layer.
        attended: pairs of a token and a token that it attends to, including itself.
    """

    tokens: int
    scored: int
    attended: int

    def flops(self, model: Any) -> int:
        """Count 6 FLOPs per weight and token (2 forward, 4 backward), and 12 per pair, layer and head dimension.

        Weights: the decoder's matrices for every token and the output layer for scored positions, without the embedding
        and without recomputation by gradient checkpointing. Attention: query times key and probability times value, 2
        FLOPs per dimension each, times three for forward and backward pass.
        """
        config = model.config
        head = int(model.get_output_embeddings().weight.numel())
        body = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.ndim == 2)
        width = config.num_attention_heads * (getattr(config, "head_dim", None) or _head_dim(config))
        attention = 12 * config.num_hidden_layers * width * self.attended
        return int(6 * (body * self.tokens + head * self.scored) + attention)


def _head_dim(config: PretrainedConfig) -> int:
    return int(config.hidden_size // config.num_attention_heads)


def packed_work(groups: Sequence[Group]) -> Work:
    """Count each prompt once and each response once."""
    tokens = scored = attended = 0
    for group in groups:
        prompt, responses = len(group.prompt), [len(response) for response in group.responses]
        tokens += prompt + sum(responses)
        scored += sum(responses)
        attended += _causal(prompt) + sum(_causal(r) + r * prompt for r in responses)
    return Work(tokens, scored, attended)


def rows_work(groups: Sequence[Group]) -> Work:
    """Count each response once, with its own copy of the prompt."""
    rows = [(len(group.prompt), len(response)) for group in groups for response in group.responses]
    tokens, scored = sum(p + r for p, r in rows), sum(r for _, r in rows)
    return Work(tokens, scored, sum(_causal(p + r) for p, r in rows))


def pairs_work(groups: Sequence[Group], every_position: bool) -> Work:
    """Count prompt and target again for each negative."""
    rows = [(len(g.prompt), len(r)) for g in groups for n in g.negatives for r in (g.target, n)]
    tokens = sum(prompt + response for prompt, response in rows)
    scored = tokens if every_position else sum(response for _, response in rows)
    return Work(tokens, scored, sum(_causal(prompt + response) for prompt, response in rows))


def _causal(length: int) -> int:
    return length * (length + 1) // 2
