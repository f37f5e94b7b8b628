"""Make models, tokenizers and settings that are small enough for any test, without a network."""

import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from selfcontrast.data.candidates import Candidate, read_candidates
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.generators.generate import FILE as CANDIDATES
from selfcontrast.models.adapters import LoRA
from selfcontrast.models.loading import save_policy, train_tokenizer
from selfcontrast.models.packing import Group
from selfcontrast.objectives import Objective, SelfContrast
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.optim import OptimConfig

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

ROOT = Path(__file__).parents[1]
TEMPLATE: str = yaml.safe_load((ROOT / "conf/model/tiny_llama.yaml").read_text())["chat_template"]
CORPUS = ["the cat sat on the mat", "what is the name of the cat?", "a dog and a cat", "Paris is in France"]
VOCABULARY = 300

HARDWARE = Hardware(
    precision="32-true",
    accelerator="cpu",
    devices=1,
    num_nodes=1,
    strategy="ddp",
    threads=1,
    attention="auto",
    compile=False,
    max_tokens_per_microbatch=64,
    logits_chunk=7,
    gradient_checkpointing=False,
    bf16_copy=False,
    rescore_reference=False,
    checkpoint_every=100,
    peak_tflops=None,
    self_check=False,
)

OPTIM = OptimConfig(
    optimizer="adamw",
    lr=1e-2,
    epochs=2,
    tokens=None,
    batch_size=4,
    max_length=64,
    schedule="cosine",
    warmup_ratio=0.25,
    weight_decay=0.1,
    betas=[0.9, 0.95],
    max_grad_norm=1.0,
    validations=0,
)

LORA = LoRA(rank=4, alpha=8.0, dropout=0.1, target_modules="all-linear", stages=["align"])


@cache
def _shared_tokenizer() -> Any:
    return train_tokenizer(CORPUS, VOCABULARY, max_length=128)


def tokenizer(template: str = TEMPLATE) -> Any:
    """Return a byte-level BPE tokenizer of about `VOCABULARY` tokens, with special tokens for the turns."""
    copied = deepcopy(_shared_tokenizer())
    copied.chat_template = template
    return copied


def llama(seed: int = 0, vocabulary: int | None = None, spread: float = 0.2, width: int = 32) -> LlamaForCausalLM:
    """Return a Llama of two layers and two heads. A large std of the weights, `spread`, gives peaked predictions."""
    config = LlamaConfig(
        vocab_size=vocabulary or len(_shared_tokenizer()),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=_shared_tokenizer().eos_token_id,
        pad_token_id=_shared_tokenizer().pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def gpt2(dropout: float, seed: int = 0, width: int = 16) -> GPT2LMHeadModel:
    """Return a GPT-2 with dropout everywhere, including attention."""
    config = GPT2Config(
        vocab_size=50,
        n_embd=width,
        n_layer=2,
        n_head=2,
        n_positions=64,
        attn_pdrop=dropout,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config)


def policy_folder(folder: Path, seed: int = 0, width: int = 32) -> Path:
    """Write a policy in the format that stages exchange."""
    save_policy(folder, llama(seed, width=width), tokenizer(), "# a card\n")
    return folder


def train_to_overfit(examples: Sequence[Example], width: int = 32) -> LlamaForCausalLM:
    """Return a model that is overfitted to the answers of `examples`, including the end token."""
    model, renderer = llama(spread=0.05, width=width), Renderer(tokenizer())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pairs = [renderer.example(item) for item in examples]
    for _ in range(40):
        for prompt, target in pairs:
            labels = torch.tensor([[-100] * len(prompt) + target])
            model(torch.tensor([prompt + target]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def groups(count: int, negatives: int = 0, seed: int = 0, vocabulary: int = 50) -> list[Group]:
    """Return groups of random tokens of different lengths."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return [int(i) for i in rng.integers(1, vocabulary, rng.integers(low, high))]

    return [Group(f"g{i}", ids(3, 9), ids(2, 8), [ids(1, 9) for _ in range(negatives)]) for i in range(count)]


def example(name: str, question: str, target: str, **fields: Any) -> Example:
    return Example(name, [{"role": "user", "content": question}], target, **fields)


def hardware(**changes: Any) -> Hardware:
    return replace(HARDWARE, **changes)


def optim(**changes: Any) -> OptimConfig:
    return replace(OPTIM, **changes)


def lora(**changes: Any) -> LoRA:
    return replace(LORA, **changes)


def self_contrast(beta: float) -> SelfContrast:
    """Return the paper's objective without options."""
    return SelfContrast(beta=beta, label_smoothing=0.0, nll_weight=0.0, length_normalised=False, rank_weights=None)


def objective_of(name: str, **changes: Any) -> Objective:
    """Return the objective of `conf/objective/NAME.yaml` with changed settings, and the paper's beta of 0.1."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    settings = OmegaConf.load(ROOT / f"conf/objective/{name}.yaml")
    objective: Objective = instantiate(
        OmegaConf.create({"beta": 0.1, "objective": OmegaConf.merge(settings, changes)}).objective
    )
    return objective


def candidates_by_prompt(folder: Path) -> Iterator[tuple[str, list[Candidate]]]:
    """Yield example id and candidates, in order of sampling, from a folder of the stage generate."""
    for name, rows in groupby(read_candidates(folder / CANDIDATES), key=lambda candidate: candidate.id):
        yield name, list(rows)
