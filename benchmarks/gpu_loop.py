"""Measure the training loop on a large model, with float32 weights, bf16 arithmetic and AdamW, as in `hardware=gpu`.

Then add settings that should make the loop faster, one after another, on a model with a quarter of the layers.
"""

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_job import OBJECTIVE
from gpu_setting import Setting
from gpu_training import hardware, optim
from workload import MODELS, random_group, random_model

from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.packed_module import Record
from selfcontrast.training.recomputation import checkpoint_layers

STEPS = 4
# Settings of `Hardware`, added in this order; the last lets micro-batches fill the memory.
CHANGES: dict[str, dict[str, Any]] = {
    "recompute all": {"gradient_checkpointing": True},
    "selective": {"gradient_checkpointing": "selective"},
    "bf16 copy": {"bf16_copy": True},
    "compiled": {"compile": True},
    "larger micro-batches": {"max_tokens_per_microbatch": "auto"},
}


def training_loop(setting: Setting) -> list[dict[str, Any]]:
    """Run steps of four micro-batches each, at (P, R, K) = (256, 256, 8). The 7B model needs about 110 GiB.

    Losses are meaningless, because the reference is zero.
    """
    return _loop(setting.large, hardware(setting), setting)


def with_changes(last: str, setting: Setting) -> list[dict[str, Any]]:
    """Run the loop with all `CHANGES` up to `last`. Return a row with the median step and the first step's seconds."""
    names = list(CHANGES)[: list(CHANGES).index(last) + 1]
    changes = {key: value for name in names for key, value in CHANGES[name].items()}
    if setting.tiny:
        changes |= {"precision": "bf16-mixed"}
        changes.pop("compile", None)  # half a minute on a CPU
    rows = _loop(setting.layers, Hardware(**{**vars(hardware(setting)), **changes}), setting)
    if "failure" in rows[0]:
        return [{"with": ", ".join(names), **rows[0]}]
    middle = sorted(rows[1:], key=lambda row: row["s"])[len(rows[1:]) // 2]
    return [{"with": ", ".join(names), **middle, "first step, s": rows[0]["s"]}]


def _loop(model: str, hardware_config: Hardware, setting: Setting) -> list[dict[str, Any]]:
    try:
        return _steps(model, hardware_config, setting)
    except torch.OutOfMemoryError:
        return [{"model": model, "failure": "out of memory"}]


def _steps(model: str, hardware_config: Hardware, setting: Setting) -> list[dict[str, Any]]:
    prompt, response, negatives = (9, 7, 3) if setting.tiny else (256, 256, 8)
    draw, vocabulary = random.Random(0), MODELS[model].vocab_size
    per_step = 4 * max(1, setting.max_tokens_per_microbatch // (prompt + (negatives + 1) * response))
    groups = [
        random_group((prompt, response, [response] * negatives), vocabulary, draw) for _ in range(STEPS * per_step)
    ]
    optim_config, records = optim(per_step), list[Record]()
    policy = random_model(model, setting.device, torch.float32)
    use_shared_prompt(policy, hardware_config.attention)
    if hardware_config.gradient_checkpointing:
        checkpoint_layers(policy, hardware_config.gradient_checkpointing)
    reference = {"0": torch.zeros(negatives + 1)}
    module = SelfContrastDPO(
        policy, optim_config, STEPS, hardware_config.logits_chunk, records.append, OBJECTIVE, StoredScores(reference)
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(module, StepData(groups, [], optim_config, hardware_config, 0), Path(folder), "loop")
    tokens = per_step * (prompt + (negatives + 1) * response)
    return [
        {
            "model": model,
            "(P, R, K)": f"({prompt}, {response}, {negatives})",
            "step": int(record["step"]),
            "s": tokens / record["tokens_per_second"],
            "tokens/s": record["tokens_per_second"],
            **({"MFU": record["mfu"]} if "mfu" in record else {}),
            "GiB": record["peak_memory_gib"],
        }
        for record in records
    ]
