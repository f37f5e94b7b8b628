"""Measure tokens per second, MFU and memory of a training step against the baselines."""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from contenders import Batch, Contender, flat, ours, pairs, rows
from gpu_setting import Setting
from meters import peak_memory, seconds
from workload import MODELS, packed_work, pairs_work, random_group, random_model, rows_work

from selfcontrast.models.attention import flex
from selfcontrast.models.packing import Group
from selfcontrast.training.steps import split_into_microbatches

RAGGED = "ragged"
ROWS, PAIRS = "unpadded rows", "lean pairs"
CHUNK = 2048  # response tokens whose logits exist at a time
# Options of FlexAttention's kernels. ROWS_GUARANTEED_SAFE holds because every token sees itself.
OPTIONS: list[dict[str, int | bool]] = [
    {},
    {"ROWS_GUARANTEED_SAFE": True},
    {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32},
]


def speeds(
    case: tuple[int, int, int] | str, variants: Sequence[str], baselines: bool, setting: Setting
) -> list[dict[str, Any]]:
    """Time forward and backward pass of full micro-batches. On a GPU the weights are in bfloat16.

    Args:
        case: (P, R, K), or `RAGGED` for lengths like those of hh-rlhf's dialogues with K = 16.
        variants: variants of this package's step to measure: "varlen", "flex" or "compiled".
        baselines: True to measure padded pairs, unpadded rows and TRL, too.
    """
    batches = batches_of(case, setting)
    model = random_model(setting.model, setting.device, torch.float32 if setting.tiny else torch.bfloat16)
    makers = {f"ours: {variant}": _ours(variant, batches, model) for variant in variants}
    budget = setting.max_tokens_per_microbatch
    with tempfile.TemporaryDirectory() as folder:
        if baselines:
            makers[ROWS] = lambda: rows(model, batches, CHUNK, "varlen", budget)
            makers[PAIRS] = lambda: pairs(model, batches, lean=True, budget=budget)
            if (trl := _trl()) is not None:
                makers["TRL"] = lambda: trl(model, batches, folder, False, budget)
        timings = [_Timing.of(name, make, len(batches), setting.rounds) for name, make in makers.items()]
        return _table(timings, batches, setting)


def kernel_options(setting: Setting) -> list[dict[str, Any]]:
    """Time FlexAttention with each of `OPTIONS` at the second shape. Every time it is compiled anew."""
    batches = batches_of(setting.shapes[1], setting)
    model = random_model(setting.model, setting.device, torch.bfloat16)
    table, before = [], flex.KERNEL_OPTIONS
    try:
        for options in OPTIONS:
            torch._dynamo.reset()
            flex._compiled.cache_clear()
            flex.KERNEL_OPTIONS = options
            timing = _Timing.of(
                str(options or "torch's own"), _ours("flex", batches, model), len(batches), setting.rounds
            )
            table += _table([timing], batches, setting)
    finally:
        flex.KERNEL_OPTIONS = before
    return table


class _Timing:
    """The measurements of a contender. If there are none, `failure` is the reason."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failure: str | None = None
        self.first = self.median = 0.0
        self.memory: float | None = None
        self.flops = self.tokens = 0

    @classmethod
    def of(cls, name: str, make: Callable[[], Contender], batches: int, rounds: int) -> "_Timing":
        timing = cls(name)
        try:
            start = time.perf_counter()
            contender = make()
            seconds(contender, 1)
            timing.first = time.perf_counter() - start
            seconds(contender, batches)
            timing.median = statistics.median(seconds(contender, batches) for _ in range(rounds))
            timing.memory = peak_memory(contender, batches)
            timing.flops = contender.work.flops(contender.model) // batches
            timing.tokens = contender.work.tokens // batches
        except torch.OutOfMemoryError:
            timing.failure = "out of memory"
            torch.cuda.empty_cache()
        return timing


def _table(timings: list[_Timing], batches: Sequence[Batch], setting: Setting) -> list[dict[str, Any]]:
    groups = flat(batches)
    packed_tokens = packed_work(groups).tokens
    bounds = {
        ROWS: rows_work(groups).tokens / packed_tokens,
        PAIRS: pairs_work(groups, every_position=False).tokens / packed_tokens,
    }
    first, table = timings[0], []
    for timing in timings:
        row: dict[str, Any] = {"contender": timing.name, "failure": timing.failure}
        if timing.failure is None:
            bound, ratio = bounds.get(timing.name), timing.median / first.median if first.median else None
            row |= {
                "s/step": timing.median,
                "first step, s": timing.first,
                "own tokens/s": round(timing.tokens / timing.median),
                "MFU": timing.flops / timing.median / setting.peak_tflops / 1e12 if setting.peak_tflops else None,
                "GiB": timing.memory * 1e6 / 2**30 if timing.memory is not None else None,
                "ours is faster by": ratio if timing is not first else None,
                "bound": bound,
                "of bound": ratio / bound if bound and ratio else None,
            }
        table.append({name: value for name, value in row.items() if value is not None})
    return table


def batches_of(case: tuple[int, int, int] | str, setting: Setting) -> list[list[Group]]:
    """Return one micro-batch of random groups, or three of ragged groups, because ragged micro-batches differ."""
    draw, vocabulary = random.Random(0), MODELS[setting.model].vocab_size
    if case == RAGGED:
        groups = ragged_groups(24 if setting.tiny else 96, 2 if setting.tiny else 16, vocabulary, draw, setting.tiny)
        return split_into_microbatches(groups, setting.max_tokens_per_microbatch)[1:4]
    prompt, response, negatives = (int(n) for n in case)
    count = max(1, setting.max_tokens_per_microbatch // (prompt + (negatives + 1) * response))
    return [[random_group((prompt, response, [response] * negatives), vocabulary, draw) for _ in range(count)]]


def ragged_groups(count: int, negatives: int, vocabulary: int, draw: random.Random, tiny: bool) -> list[Group]:
    """Draw log-normal lengths like hh-rlhf's dialogues: medians of 80 (prompts) and 29 tokens (responses), max 512."""

    def tokens(median: float, spread: float) -> int:
        return max(1, min(16 if tiny else 512, round(median * draw.lognormvariate(0, spread) / (20 if tiny else 1))))

    def group() -> Group:
        lengths = tokens(80, 1.13), tokens(29, 0.92), [tokens(29, 0.92) for _ in range(negatives)]
        return random_group(lengths, vocabulary, draw)

    return [group() for _ in range(count)]


def _ours(variant: str, batches: Sequence[Batch], model: Any) -> Callable[[], Contender]:
    compiled = variant == "compiled"
    return lambda: ours(model, batches, CHUNK, "varlen" if compiled else variant, compiled)


def _trl() -> Callable[..., Contender] | None:
    try:
        from contender_trl import trl
    except ImportError:
        return None
    return trl
