"""Measure how far a bfloat16 policy is from its own reference at step 0, for two ways to score the reference.

    OMP_NUM_THREADS=1 python benchmarks/reference_noise.py

Stored scores come from micro-batches of one group with all its negatives. Training's micro-batches hold several groups
with half of the negatives. `head` is the arithmetic of the output layer: unchanged; rounded factors with float32 sums,
as on a GPU; or float32 throughout. It runs on a CPU.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from workload import random_group

from selfcontrast.models import log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt

BETA = 0.1
_APPLY: Any = log_probs._ChunkedLogProbs.apply


def _float32_sums(a: Tensor, b: Tensor) -> Tensor:
    return a.float() @ b.float()


def _float32(states: Tensor, weight: Tensor, bias: Any, labels: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    values: Tensor = _APPLY(states.float(), weight.float(), bias, labels, chunk, torch.float32)
    return values


HEADS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "unchanged": nullcontext,
    "float32 sums": lambda: patch.object(log_probs, "_product", _float32_sums),
    "float32": lambda: patch.object(log_probs, "_ChunkedLogProbs", SimpleNamespace(apply=_float32)),
}


@torch.no_grad()
def scores(model: Any, microbatches: Sequence[Sequence[Group]], negatives: int) -> Tensor:
    """Return summed log-probabilities of the target and the first four negatives, [groups, 5]."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [
            log_probs.response_log_probs(
                model, pack([replace(g, negatives=g.negatives[:negatives]) for g in part]), chunk_size=512
            )
            for part in microbatches
        ]
    return torch.cat([values[:, :5] for values in parts])


def margin_std(policy: Tensor, reference: Tensor) -> float:
    change = BETA * (policy - reference)
    return float((change[:, :1] - change[:, 1:]).square().mean().sqrt())


def main() -> None:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=704,
            initializer_range=0.06,
        )
    ).eval()
    use_shared_prompt(model)
    draw = random.Random(0)
    lengths = [
        (draw.randint(20, 120), draw.randint(20, 60), [draw.randint(20, 60) for _ in range(8)]) for _ in range(8)
    ]
    groups = [random_group(sizes, 2048, draw) for sizes in lengths]
    stored, training = [[group] for group in groups], [groups[:4], groups[4:]]
    print(f"torch {torch.__version__}; margins' distance from 0, beta {BETA}")
    for name, head in HEADS.items():
        with head():
            policy = scores(model, training, 4)
            from_stored, from_training = (
                margin_std(policy, scores(model, *case)) for case in ((stored, 8), (training, 4))
            )
        print(f"head {name}: stored scores {from_stored:.4f}, training's micro-batches {from_training:.4f}")


if __name__ == "__main__":
    main()
