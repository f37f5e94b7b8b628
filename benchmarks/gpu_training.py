"""The trainer's settings for the GPU check: the config's own files, without Hydra."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from gpu_setting import Setting

from selfcontrast.training.hardware import Hardware
from selfcontrast.training.recipe import Recipe

CONF = Path(__file__).parents[1] / "conf" / "hardware"


def hardware(setting: Setting) -> Hardware:
    """`hardware=gpu`, or `hardware=cpu` with small passes and varlen's plain form."""
    values: dict[str, Any] = {}
    for name in ("cpu", "gpu"):
        values |= yaml.safe_load((CONF / f"{name}.yaml").read_text())
        if setting.tiny:
            values |= {"attention": "varlen", "tokens_per_pass": setting.tokens_per_pass, "threads": 1}
            break
    own = {key: value for key, value in values.items() if key not in ("_target_", "defaults")}
    return replace(Hardware(**own), peak_tflops=setting.peak_tflops)


def recipe(prompts_per_step: int) -> Recipe:
    return Recipe(
        optimizer="adamw",
        lr=1e-6,
        epochs=1,
        tokens=None,
        prompts_per_step=prompts_per_step,
        cutoff=4096,
        schedule="linear",
        warmup=0.1,
        weight_decay=0.0,
        betas=[0.9, 0.95],
        clip_norm=1.0,
        validations=0,
    )
