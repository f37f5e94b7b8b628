"""Measure the time of sampling N responses per prompt: the backend `hf` against a plain loop over `model.generate`.

    python benchmarks/generate.py                                  # fine-tunes the built-in model for a minute first
    python benchmarks/generate.py --model store/sft/KEY/model      # a policy folder
    python benchmarks/generate.py --samples 8 --rounds 5

Both sample the same prompts of the built-in data, in one process, and alternate in every round. Times are CPU seconds
(of one thread, unless --threads says otherwise), and ratios are medians over the rounds, so a busy machine slows both
alike. The plain loop samples prompt by prompt with `num_return_sequences=N`, with the same end tokens and maximal
length. It samples until the last of the N responses ends. Rates count tokens of responses per second, without padding.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from selfcontrast.config import build
from selfcontrast.data.candidates import Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.generators.hf import HF
from selfcontrast.models.loading import load_model, load_tokenizer
from selfcontrast.training.sft import fine_tune
from selfcontrast.training.training import Training

CONF = Path(__file__).resolve().parents[1] / "conf"

Contender = Callable[[], int]
"""A function that samples everything once and returns the number of response tokens."""


def tiny_policy(folder: Path, threads: int) -> Path:
    """Fine-tune the built-in model just long enough for responses to end like targets."""
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("config", ["data.train=4000", "sft.epochs=2", "sft.validations=0", f"hardware.threads={threads}"])
    groups = ("data", "model", "adapter", "sft", "hardware")
    data, model, adapter, optim, hardware = (build(cfg[group], group) for group in groups)
    fine_tune(folder, model, data.load(), Training(adapter.at("sft"), optim, hardware, 1, lambda record: None))
    return folder / "model"


def prompts(policy: Path, count: int) -> list[Request]:
    """Return the first training prompts of the built-in data."""
    with initialize_config_dir(str(CONF), version_base=None):
        data = build(compose("config", ["data.train=4000"]).data, "data")
    renderer = Renderer(load_tokenizer(policy))
    return [Request(e.id, renderer.prompt(e.prompt), e.prompt) for e in data.load()["train"][:count]]


def plain_loop(policy: Path, requests: list[Request], decoding: Decoding) -> Contender:
    model, tokenizer = load_model(policy).eval(), load_tokenizer(policy)
    ends = sorted(Renderer(tokenizer).end_ids)

    @torch.inference_mode()
    def run() -> int:
        tokens = 0
        for request in requests:
            ids = torch.tensor([request.prompt])
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                top_k=0,
                num_return_sequences=decoding.samples,
                max_new_tokens=min(decoding.max_new_tokens, decoding.max_length - len(request.prompt)),
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )[:, len(request.prompt) :]
            ended = torch.isin(output, torch.tensor(ends)).long()
            tokens += int((ended.cumsum(-1) - ended == 0).sum())  # up to and including the first end token
        return tokens

    return run


def ours(sample: Any, requests: list[Request], decoding: Decoding) -> Contender:
    by_length = sorted(requests, key=lambda request: len(request.prompt))  # the order of Responder
    return lambda: sum(len(candidate.token_ids) for candidate in sample(by_length, decoding, 1))


def measure(policy: Path, args: argparse.Namespace, console: Console) -> None:
    decoding = Decoding(args.samples, 1.0, 1.0, 256, 512)
    requests = prompts(policy, args.prompts)
    with HF("float32", args.batch_size).open(policy, "cpu") as sample:
        first = requests[:2]
        for warm_up in (ours(sample, first, decoding), plain_loop(policy, first, decoding)):
            warm_up()
        contenders = {"hf": ours(sample, requests, decoding), "plain loop": plain_loop(policy, requests, decoding)}
        rounds = [{name: _timed(run) for name, run in contenders.items()} for _ in range(args.rounds)]
    table = Table(title=f"{args.prompts} prompts × {args.samples} responses, medians of {args.rounds}")
    for column in ("", "CPU s", "tokens", "tokens/s", "hf is faster by"):
        table.add_column(column, justify="right" if column else "left")
    for name in contenders:
        seconds = statistics.median(r[name][0] for r in rounds)
        tokens = statistics.median(r[name][1] for r in rounds)
        rate = statistics.median(r[name][1] / r[name][0] for r in rounds)
        ratio = statistics.median((r["hf"][1] / r["hf"][0]) / (r[name][1] / r[name][0]) for r in rounds)
        table.add_row(name, f"{seconds:.1f}", f"{tokens:.0f}", f"{rate:.0f}", f"{ratio:.2f}x")
    console.print(table)


def _timed(run: Contender) -> tuple[float, int]:
    """Return CPU seconds and tokens."""
    start = time.process_time()
    tokens = run()
    return time.process_time() - start, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a policy folder; default: fine-tune one")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32, help="N")
    parser.add_argument("--batch-size", type=int, default=256, help="responses at once (hf)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    console = Console(width=110)
    console.print(f"torch {torch.__version__}, {args.threads} thread(s), float32")
    with tempfile.TemporaryDirectory() as folder:
        measure(args.model or tiny_policy(Path(folder), args.threads), args, console)


if __name__ == "__main__":
    main()
