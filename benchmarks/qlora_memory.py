"""Measure the memory of QLoRA's training step at the layer shape of Mistral-7B, on a GPU or a CPU.

    OMP_NUM_THREADS=2 python benchmarks/qlora_memory.py --layers 2   # on a CPU; again with 4, for the share of a layer
    python benchmarks/qlora_memory.py                                # on a GPU: the whole model (4 minutes)

Weights are random. The micro-batch holds groups of a prompt, a target and two negatives with 512 tokens each. Gradient
checkpointing is on, arithmetic is bf16-mixed, and the adapters have rank 16.
"""

import argparse
import ctypes
import gc
import random
import tempfile
from copy import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_job import OBJECTIVE
from gpu_setting import Setting, SkipStep
from gpu_training import hardware, optim
from meters import status
from transformers import AutoModelForCausalLM, LlamaConfig
from workload import MODELS, random_group

from selfcontrast.models.adapters import QLoRA
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.packed_module import Record
from selfcontrast.training.recomputation import checkpoint_layers

ADAPTER = QLoRA(
    rank=16,
    alpha=32.0,
    dropout=0.0,
    target_modules="all-linear",
    stages=["align"],
    quant_type="nf4",
    double_quant=True,
    compute_dtype="bfloat16",
)
MISTRAL = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=4096,
    pad_token_id=None,
)
PART = 512  # tokens of a prompt and of each of its three responses


def qlora_memory(setting: Setting) -> list[dict[str, Any]]:
    """Return rows for 2 and 6 layers in micro-batches of 8,192 tokens, and the extrapolation to the whole model.

    The whole model would take 4 minutes, because weights are quantised on the CPU. With tiny sizes there is one row.
    """
    if missing := [name for name in ("peft", "bitsandbytes") if find_spec(name) is None]:
        raise SkipStep(f"{' and '.join(missing)} missing")
    if setting.tiny:
        return [measure(MODELS[setting.model], 8, replace(hardware(setting), precision="bf16-mixed"))]
    settings = replace(hardware(setting), max_tokens_per_microbatch=8192)
    few, more = (measure(with_layers(count), PART, settings) for count in (2, 6))
    whole = MISTRAL.num_hidden_layers
    per_layer = {name: (more[name] - few[name]) / 4 for name in more}
    return [few, more, {name: few[name] + (whole - 2) * per_layer[name] for name in few}]


def with_layers(count: int) -> Any:
    config = copy(MISTRAL)
    config.num_hidden_layers = count
    return config


def measure(config: Any, part: int, hardware_config: Hardware) -> dict[str, Any]:
    """Train two steps of one micro-batch, of groups whose parts have `part` tokens. Return memory in GB.

    "loaded" is the memory of weights and adapters, "peak" the highest memory during the steps. Both leave out what the
    process had used before.
    """
    device = hardware_config.device
    before = _used(device)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    policy = ADAPTER.wrap(model.to("cpu"), seed=0).to(device)
    use_shared_prompt(policy, hardware_config.attention)
    checkpoint_layers(policy, True)
    tokens = hardware_config.fixed_tokens_per_microbatch()
    draw, per_step = random.Random(0), tokens // (4 * part)
    groups = [random_group((part, part, [part, part]), config.vocab_size, draw) for _ in range(2 * per_step)]
    stored, records = StoredScores({"0": torch.zeros(3)}, reference_is_model=False), list[Record]()
    settings, chunk = optim(per_step), hardware_config.logits_chunk
    module = SelfContrastDPO(policy, settings, 2, chunk, records.append, OBJECTIVE, stored)
    loaded = _used(device)
    _reset_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        fit(module, StepData(groups, [], settings, hardware_config, 0), Path(folder), "qlora")
    assert len(records) == 2
    return {
        "layers": config.num_hidden_layers,
        "tokens": tokens,
        "loaded, GB": loaded - before,
        "peak, GB": _peak(device) - before,
    }


def _used(device: str) -> float:
    """Return the memory in use, in GB: allocated on the GPU, or resident in this process."""
    gc.collect()
    if device == "cuda":
        return torch.cuda.memory_allocated() / 1e9
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status("VmRSS") / 1e6


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else status("VmHWM") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens per micro-batch, at least 2048")
    args = parser.parse_args()
    if args.tokens < 4 * PART:
        parser.error(f"--tokens {args.tokens}: a group has {4 * PART} tokens. Give at least as many.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {device}")
    settings = replace(
        hardware(Setting.on(device)),
        precision="bf16-mixed",
        attention="auto",
        threads=None,
        max_tokens_per_microbatch=args.tokens,
        logits_chunk=2048,
    )
    print(measure(with_layers(args.layers), PART, settings))


if __name__ == "__main__":
    main()
