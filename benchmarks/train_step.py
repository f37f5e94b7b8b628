"""Time and memory of a training step on K negatives: ours, TRL's DPOTrainer, padded pairs in plain PyTorch.

    python benchmarks/train_step.py                                 # the grid, about 10 minutes on one core
    python benchmarks/train_step.py --shapes 64,64,16 --rounds 9
    python benchmarks/train_step.py --lengths harmless-base_test.jsonl.gz   # as long as real dialogues

Everything runs in one process, in turns, on copies of one random Llama: each round measures every contender
once, and ratios are medians over the rounds, so that a busy machine slows all alike. A step is the forward and
backward pass of one prompt with its target and K negatives, in float32 on a CPU, without the optimiser (which
costs all of them the same); reference log-probabilities are precomputed for all. The contenders:

- ours: packed groups, chunked log-probabilities.
- pairs: 2K padded rows, the model's own SDPA attention, logits of every position (what most trainers do).
- lean pairs: the same with logits of response positions only: the strictest baseline.
- TRL: compute_loss of its DPOTrainer with the fused head and precomputed reference, the K rows of a prompt in
  one batch, gradient checkpointing and bf16 off. Away from a GPU its fused head scores every position, the
  prompt's and the padding's too, and it collects entropy and accuracy besides: a GPU would treat it better.

The bound is the ratio of token counts, pairs' over ours: 2K(P+R) / (P+(K+1)R), without padding. Memory is the
highest resident memory during a step beyond what was there before it (gradients included). `error` is the
relative difference of a contender's gradient from that of the pairs.
"""

import argparse
import copy
import ctypes
import gc
import gzip
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from selfcontrast.data.formats import OddRow, recognise
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.objectives import Objective

GRID = "64,64,1 64,64,4 64,64,16 256,64,16 128,128,16"
BETA = 0.1
OBJECTIVE = Objective("mean_of_pairs", "sigmoid", BETA, 0.0, 0.0, 0.0, False, None)  # the paper's
CHARACTERS_PER_TOKEN = 4


# ---- what is measured: a function of the groups that leaves gradients on its own copy of the model


@dataclass
class Contender:
    name: str
    model: LlamaForCausalLM
    step: Callable[[int], None]  # forward and backward of the i-th group


def ours(model: LlamaForCausalLM, groups: list[Group], chunk_size: int) -> Contender:
    with torch.no_grad():
        references = [response_log_probs(model, pack([group]), chunk_size) for group in groups]

    def step(i: int) -> None:
        p = pack([groups[i]])  # packing is part of the step
        log_probs = response_log_probs(model, p, chunk_size)
        OBJECTIVE(log_probs, references[i], p.lengths, p.mask).loss.sum().backward()

    return Contender("ours", model, step)


def pairs(model: LlamaForCausalLM, groups: list[Group], lean: bool) -> Contender:
    batches = [_pair_rows(group) for group in groups]

    def log_probs(i: int) -> Tensor:
        """[K, 2]"""
        ids, attended = batches[i]
        prompt = len(groups[i].prompt)
        if lean:
            hidden = model.model(input_ids=ids, attention_mask=attended).last_hidden_state
            logits = model.lm_head(hidden[:, prompt - 1 : -1])
        else:
            logits = model(input_ids=ids, attention_mask=attended).logits[:, prompt - 1 : -1]
        tokens = logits.log_softmax(-1).gather(-1, ids[:, prompt:, None])[..., 0]
        return (tokens * attended[:, prompt:]).sum(-1).view(-1, 2)

    with torch.no_grad():
        references = [log_probs(i) for i in range(len(groups))]

    def step(i: int) -> None:
        rewards = BETA * (log_probs(i) - references[i])
        (-torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1])).mean().backward()

    return Contender("lean pairs" if lean else "pairs", model, step)


def _pair_rows(group: Group) -> tuple[Tensor, Tensor]:
    """ids and attention mask [2K, longest]: target and negative in turns, padded on the right."""
    rows = [group.prompt + response for n in group.negatives for response in (group.target, n)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    attended = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], attended[i, : len(row)] = torch.tensor(row), 1
    return ids, attended


def trl(model: LlamaForCausalLM, groups: list[Group], folder: str) -> Contender:
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=folder,
            beta=BETA,
            max_length=None,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([row for group in groups for row in _trl_rows(group)]),
        processing_class=_tokenizer(model.config.vocab_size),
    )
    trainer.get_train_dataloader()  # scores the reference
    rows = iter(list(trainer.train_dataset))
    batches = [trainer.data_collator([next(rows) for _ in group.negatives]) for group in groups]

    def step(i: int) -> None:
        trainer.compute_loss(model, dict(batches[i])).backward()

    return Contender("TRL", model, step)


def _trl_rows(group: Group) -> list[dict[str, str]]:
    """Text whose words are the token ids; TRL appends the end of text itself, so a response ends before it."""
    prompt, target = (" ".join(map(str, ids)) for ids in (group.prompt, group.target[:-1]))
    return [
        {"prompt": prompt, "chosen": f" {target}", "rejected": " " + " ".join(map(str, negative[:-1]))}
        for negative in group.negatives
    ]


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """The words are the numbers of the tokens; 0 is the end of text."""
    words = {"<eos>": 0, **{str(i): i for i in range(1, vocabulary)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


# ---- on what: groups of random tokens, of given or real lengths


def random_group(lengths: tuple[int, int, list[int]], vocabulary: int, draw: random.Random) -> Group:
    """lengths: of prompt, target and negatives; every response ends with 0, the end of text."""

    def tokens(count: int) -> list[int]:
        return [draw.randrange(1, vocabulary) for _ in range(count)]

    prompt, target, negatives = lengths
    responses = [[*tokens(count - 1), 0] for count in (target, *negatives)]
    return Group("0", tokens(prompt), responses[0], responses[1:])


def dialogue_lengths(
    file: Path, count: int, negatives: int, longest: int, draw: random.Random
) -> list[tuple[int, int, list[int]]]:
    """Prompts and targets of `count` dialogues, with negatives as long as answers drawn from all of the file."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    parse = recognise(rows[0])
    if parse is None:
        raise SystemExit(f"{file}: no known row format; give preference data such as hh-rlhf's")
    dialogues = []
    for row in rows:
        try:
            parsed = parse(row)
        except OddRow:
            continue
        prompt = _tokens("".join(message["content"] for message in parsed.prompt))
        if prompt <= longest:
            dialogues.append((prompt, min(_tokens(parsed.target), longest)))
    answers = [target for _, target in dialogues]
    chosen = draw.sample(dialogues, count)
    return [(prompt, target, draw.choices(answers, k=negatives)) for prompt, target in chosen]


def _tokens(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN + 2  # one of them the end of the turn


# ---- measuring


def seconds(contender: Contender, groups: int) -> float:
    """Per step, each group once."""
    total = 0.0
    for i in range(groups):
        contender.model.zero_grad()
        start = time.perf_counter()
        contender.step(i)
        total += time.perf_counter() - start
    return total / groups


def peak_memory(contender: Contender, groups: int) -> float | None:
    """MB that a step takes at most beyond what was there, or None where Linux does not say."""
    contender.model.zero_grad()
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        for i in range(groups):
            contender.model.zero_grad()
            contender.step(i)
    except OSError:
        return None
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """kB"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def gradient(contender: Contender) -> Tensor:
    contender.model.zero_grad()
    contender.step(0)
    return torch.cat([p.grad.flatten() for p in contender.model.parameters() if p.grad is not None])


def measure(name: str, groups: list[Group], args: argparse.Namespace, console: Console) -> None:
    torch.manual_seed(0)
    heads = args.hidden // 32
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=round(args.hidden * 2.75),
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        contenders = [
            ours(copy.deepcopy(model), groups, args.chunk_size),
            pairs(copy.deepcopy(model), groups, lean=False),
            pairs(copy.deepcopy(model), groups, lean=True),
            trl(copy.deepcopy(model), groups, folder),
        ]
        gradients = [gradient(contender) for contender in contenders]  # warms up, too
        rounds = [[seconds(contender, len(groups)) for contender in contenders] for _ in range(args.rounds)]
        memory = [peak_memory(contender, len(groups)) for contender in contenders]
    console.print(_table(name, groups, contenders, rounds, memory, gradients))


def _table(
    name: str,
    groups: list[Group],
    contenders: list[Contender],
    rounds: list[list[float]],
    memory: list[float | None],
    gradients: list[Tensor],
) -> Table:
    fewest = sum(len(g.prompt) + sum(map(len, g.responses)) for g in groups)
    most = sum(2 * len(g.prompt) + len(g.target) + len(n) for g in groups for n in g.negatives)
    bound = most / fewest
    table = Table(title=f"{name}: bound {bound:.2f}x", title_justify="left")
    for column in ("", "s/step", "ours is faster by", "share of bound", "MB", "of pairs' MB", "error"):
        table.add_column(column, justify="left" if not column else "right")
    for i, contender in enumerate(contenders):
        ratio = statistics.median(row[i] / row[0] for row in rounds)
        error = float((gradients[i] - gradients[1]).norm() / gradients[1].norm())
        mine, theirs = memory[i], memory[1]
        table.add_row(
            contender.name,
            f"{statistics.median(row[i] for row in rounds):.3f}",
            f"{ratio:.2f}x" if i else "",
            f"{ratio / bound:.2f}" if i else "",
            f"{mine:.0f}" if mine is not None else "unknown",
            f"{mine / theirs:.2f}" if mine is not None and theirs else "unknown",
            f"{error:.0e}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=GRID.split(), help="P,R,K in tokens, tokens and negatives")
    parser.add_argument("--lengths", type=Path, help="preference data as JSON lines, in place of --shapes")
    parser.add_argument("--dialogues", type=int, default=6, help="drawn from --lengths")
    parser.add_argument("--negatives", type=int, default=16, help="per dialogue of --lengths")
    parser.add_argument("--longest", type=int, default=512, help="prompts left out, answers cut (tokens)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256, help="width, a multiple of 32")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--chunk-size", type=int, default=2048, help="tokens whose logits exist at a time (ours)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    disable_progress_bars()
    console, draw = Console(width=110), random.Random(0)
    console.print(
        f"torch {torch.__version__}, {args.threads} thread(s), float32, Llama {args.layers} x {args.hidden}, "
        f"{args.vocabulary} tokens, medians of {args.rounds} rounds"
    )
    if args.lengths:
        found = dialogue_lengths(args.lengths, args.dialogues, args.negatives, args.longest, draw)
        groups = [random_group(lengths, args.vocabulary, draw) for lengths in found]
        measure(f"{args.dialogues} dialogues, K = {args.negatives}", groups, args, console)
        return
    for shape in args.shapes:
        prompt, response, negatives = map(int, shape.split(","))
        lengths = (prompt, response, [response] * negatives)
        measure(f"(P, R, K) = ({shape})", [random_group(lengths, args.vocabulary, draw)], args, console)


if __name__ == "__main__":
    main()
