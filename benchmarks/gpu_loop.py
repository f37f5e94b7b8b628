"""The whole training loop on a large model: float32 weights, bf16 arithmetic, AdamW, as `hardware=gpu` has it."""

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_job import OBJECTIVE
from gpu_setting import Setting
from gpu_training import hardware, recipe
from workload import MODELS, random_group, random_model

from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.training.fit import StepData, fit
from selfcontrast.training.module import Record
from selfcontrast.training.modules import SelfContrastDPO

STEPS = 4


def training_loop(setting: Setting) -> list[dict[str, Any]]:
    """Steps at (P, R, K) = (256, 256, 8), each of four passes; at 7B they need about 110 GiB.

    Losses mean nothing: the reference is zero.
    """
    try:
        return _steps(setting)
    except torch.OutOfMemoryError:
        return [{"model": setting.large, "failure": "out of memory"}]


def _steps(setting: Setting) -> list[dict[str, Any]]:
    prompt, response, negatives = (9, 7, 3) if setting.tiny else (256, 256, 8)
    draw, vocabulary = random.Random(0), MODELS[setting.large].vocab_size
    per_step = 4 * max(1, setting.tokens_per_pass // (prompt + (negatives + 1) * response))
    groups = [
        random_group((prompt, response, [response] * negatives), vocabulary, draw) for _ in range(STEPS * per_step)
    ]
    machine, settings, records = hardware(setting), recipe(per_step), list[Record]()
    policy = random_model(setting.large, setting.device, torch.float32)
    use_shared_prompt(policy, machine.attention)
    if machine.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    reference = {"0": torch.zeros(negatives + 1)}
    module = SelfContrastDPO(
        policy, settings, STEPS, machine.logits_chunk, records.append, OBJECTIVE, reference, setting.peak_tflops
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(module, StepData(groups, [], settings, machine, 0), Path(folder), "loop")
    tokens = per_step * (prompt + (negatives + 1) * response)
    return [
        {
            "model": setting.large,
            "(P, R, K)": f"({prompt}, {response}, {negatives})",
            "step": int(record["step"]),
            "s": tokens / record["tokens_per_second"],
            "tokens/s": record["tokens_per_second"],
            **({"MFU": record["mfu"]} if "mfu" in record else {}),
            "GiB": record["peak_memory_gib"],
        }
        for record in records
    ]
