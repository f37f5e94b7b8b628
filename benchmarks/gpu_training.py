"""Build the trainer's settings for the GPU check: those of `hardware` from conf/hardware without Hydra."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from gpu_setting import Setting

from selfcontrast.training.hardware import Hardware
from selfcontrast.training.optim import OptimConfig

CONF = Path(__file__).parents[1] / "conf" / "hardware"


def hardware(setting: Setting) -> Hardware:
    """Return `hardware=gpu`, or `hardware=cpu` with small micro-batches and varlen's reference implementation."""
    values: dict[str, Any] = {}
    for name in ("cpu", "gpu"):
        values |= yaml.safe_load((CONF / f"{name}.yaml").read_text())
        if setting.tiny:
            values |= {
                "attention": "varlen",
                "max_tokens_per_microbatch": setting.max_tokens_per_microbatch,
                "threads": 1,
            }
            break
    settings = {key: value for key, value in values.items() if key not in ("_target_", "defaults")}
    return replace(Hardware(**settings), peak_tflops=setting.peak_tflops)


def optim(batch_size: int) -> OptimConfig:
    return OptimConfig(
        optimizer="adamw",
        lr=1e-6,
        epochs=1,
        tokens=None,
        batch_size=batch_size,
        max_length=4096,
        schedule="linear",
        warmup_ratio=0.1,
        weight_decay=0.0,
        betas=[0.9, 0.95],
        max_grad_norm=1.0,
        validations=0,
    )
