"""Measure time and memory of a training step on K negatives: this package, TRL's DPOTrainer, padded pairs.

    python benchmarks/train_step.py                                 # the grid, about 10 minutes on one core
    python benchmarks/train_step.py --shapes 64,64,16 --rounds 9
    python benchmarks/train_step.py --lengths harmless-base_test.jsonl.gz   # as long as real dialogues
    python benchmarks/train_step.py --device cuda --dtype bf16 --peak-tflops 989 --model qwen-0.5b
    python benchmarks/train_step.py --device cuda --dtype bf16 --model llama-7b --gradient-checkpointing

Everything runs in one process on one model with random weights. Each round measures every contender once, and ratios
are medians over the rounds, so a busy machine slows all alike. A step is the forward and backward pass of one prompt
with its target and K negatives. The optimiser is left out, because it costs the same for all; reference
log-probabilities are precomputed for all. The contenders:

- ours (this package): packed groups, chunked log-probabilities; with --compile also with compiled layers.
- pairs (plain PyTorch): 2K padded rows, the model's own SDPA attention, logits of every position, as in most trainers.
- lean pairs: the same with logits of response positions only: the strictest baseline.
- TRL: compute_loss of its DPOTrainer with the fused head and precomputed reference, the K rows of a prompt in one
  batch. Without a GPU, TRL's fused head also scores the prompt and the padding, and collects entropy and accuracy. So
  TRL does better on a GPU.

The bound is the ratio of token counts, pairs / ours: 2K(P+R) / (P+(K+1)R), without padding. Memory is the peak during a
step minus the memory before it (gradients included): resident on a CPU, allocated on a GPU. `error` is the relative
difference of a contender's gradient from that of the pairs. Tokens are those of a contender's own rows. `of peak` is
a contender's model FLOPs / --peak-tflops. `Work.flops` in workload.py counts the FLOPs.
"""

import argparse
import random
import statistics
import tempfile
from pathlib import Path

import torch
from contender_trl import trl
from contenders import Contender, ours, pairs
from meters import difference, gradients, peak_memory, seconds
from rich.console import Console
from rich.table import Table
from transformers.utils import logging
from workload import MODELS, dialogue_lengths, packed_work, pairs_work, random_group, random_model

from selfcontrast.models.attention.choice import ATTENTIONS
from selfcontrast.models.packing import Group

GRID = "64,64,1 64,64,4 64,64,16 256,64,4 256,64,16 128,128,16"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(name: str, groups: list[Group], args: argparse.Namespace, console: Console) -> None:
    model = random_model(args.model, args.device, DTYPES[args.dtype])
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with tempfile.TemporaryDirectory() as folder:
        batches = [[group] for group in groups]
        contenders = [
            pairs(model, batches, lean=False, budget=1),
            pairs(model, batches, lean=True, budget=1),
            trl(model, batches, folder, args.gradient_checkpointing, budget=1),
            ours(model, batches, args.chunk_size, args.attention),
        ]
        if args.compile:
            copy = random_model(args.model, args.device, DTYPES[args.dtype])
            contenders.append(ours(copy, batches, args.chunk_size, args.attention, True, "ours, compiled"))
        expected, errors = None, {}
        for contender in contenders:  # also the warm-up
            result = gradients(contender)
            expected = expected or result
            errors[contender.name] = difference(result, expected) if result and expected else None
        fitting = [contender for contender in contenders if errors[contender.name] is not None]
        rounds = [{c.name: seconds(c, len(groups)) for c in fitting} for _ in range(args.rounds)]
        memory = {c.name: peak_memory(c, len(groups)) for c in fitting}
    console.print(_table(name, groups, contenders, rounds, memory, errors, args.peak_tflops))


def _table(
    name: str,
    groups: list[Group],
    contenders: list[Contender],
    rounds: list[dict[str, float]],
    memory: dict[str, float | None],
    errors: dict[str, float | None],
    peak_tflops: float | None,
) -> Table:
    bound = pairs_work(groups, True).tokens / packed_work(groups).tokens
    table = Table(title=f"{name}: bound {bound:.2f}x", title_justify="left")
    columns = ["", "s/step", "ours is faster by", "fraction of bound", "tokens/s", "MB", "of pairs' MB", "error"]
    for column in columns + (["of peak"] if peak_tflops else []):
        table.add_column(column, justify="left" if not column else "right")
    for contender in contenders:
        label = contender.name
        if errors[label] is None:
            table.add_row(label, "out of memory")
            continue
        median = statistics.median(row[label] for row in rounds)
        ratio = statistics.median(row[label] / row["ours"] for row in rounds) if errors["ours"] is not None else None
        peak, pairs_peak = memory[label], memory.get("pairs")
        per_second = contender.work.flops(contender.model) / len(groups) / median
        table.add_row(
            label,
            f"{median:.3f}",
            f"{ratio:.2f}x" if ratio and label != "ours" else "",
            f"{ratio / bound:.2f}" if ratio and not label.startswith("ours") else "",
            f"{contender.work.tokens / len(groups) / median:,.0f}",
            f"{peak:.0f}" if peak is not None else "unknown",
            f"{peak / pairs_peak:.2f}" if peak is not None and pairs_peak else "unknown",
            f"{errors[label]:.0e}",
            *([f"{per_second / peak_tflops / 1e12:.2f}"] if peak_tflops else []),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=GRID.split(), help="P,R,K in tokens, tokens and negatives")
    parser.add_argument("--lengths", type=Path, help="preference data as JSON lines, instead of --shapes")
    parser.add_argument("--dialogues", type=int, default=6, help="number of dialogues drawn from --lengths")
    parser.add_argument("--negatives", type=int, default=16, help="negatives per dialogue of --lengths")
    parser.add_argument("--longest", type=int, default=512, help="drop longer prompts, cut longer answers (tokens)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", choices=MODELS, default="llama-13m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="dtype of weights and arithmetic")
    parser.add_argument("--attention", choices=ATTENTIONS, default="auto", help="attention of the contender ours")
    parser.add_argument("--compile", action="store_true", help="measure ours with compiled layers, too")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="for all contenders")
    parser.add_argument("--peak-tflops", type=float, help="peak of the device in this dtype, from its data sheet")
    parser.add_argument("--chunk-size", type=int, default=2048, help="tokens whose logits exist at a time (ours)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    console, draw = Console(width=120), random.Random(0)
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} thread(s)"
    console.print(f"torch {torch.__version__}, {device}, {args.model} in {args.dtype}, medians of {args.rounds} rounds")
    vocabulary = MODELS[args.model].vocab_size
    if args.lengths:
        dialogues = dialogue_lengths(args.lengths, args.dialogues, args.negatives, args.longest, draw)
        groups = [random_group(lengths, vocabulary, draw) for lengths in dialogues]
        measure(f"{args.dialogues} dialogues, K = {args.negatives}", groups, args, console)
        return
    for shape in args.shapes:
        prompt, response, negatives = map(int, shape.split(","))
        lengths = (prompt, response, [response] * negatives)
        measure(f"(P, R, K) = ({shape})", [random_group(lengths, vocabulary, draw)], args, console)


if __name__ == "__main__":
    main()
