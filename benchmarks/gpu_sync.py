"""Find the lines at which a training step waits for the GPU, by torch's own check."""

import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import torch
from gpu_job import OBJECTIVE
from gpu_setting import Setting
from gpu_speed import batches_of
from gpu_training import hardware, optim
from workload import random_model

from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.steps import Step

ALLOWED = 2  # waits per step, both before the update: reading the metrics and the gradient's norm


class _SyncCounter(SelfContrastDPO):
    """A training module that counts synchronisations in its third step, by line."""

    counts: ClassVar[Counter[str]] = Counter()

    def training_step(self, step: Step, index: int) -> None:
        if self.global_step != 2 or self.device.type != "cuda":
            return super().training_step(step, index)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().training_step(step, index)
        torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in caught if "synchroniz" in str(w.message).lower()]
        self.counts.update(f"{Path(w.filename).name}:{w.lineno}" for w in waits)
        return None


def host_waits(setting: Setting) -> list[dict[str, Any]]:
    """Return the lines at which the host waited, and how often, in one step of two passes."""
    groups = [group for batch in batches_of(setting.shapes[1], setting) for group in batch] * 6
    machine, settings = hardware(setting), optim(len(groups) // 3)
    policy = random_model("qwen-tiny" if setting.tiny else "llama-0.4b", setting.device, torch.float32)
    use_shared_prompt(policy, machine.attention)
    reference = {"0": torch.zeros(len(groups[0].responses))}
    module = _SyncCounter(
        policy, settings, 3, machine.logits_chunk, lambda record: None, OBJECTIVE, StoredScores(reference)
    )
    _SyncCounter.counts.clear()
    with tempfile.TemporaryDirectory() as folder:
        fit(module, StepData(groups, [], settings, machine, 0), Path(folder), "watch")
    if setting.device != "cuda":
        return [{"line": "only a GPU can tell", "waits": 0}]
    total = module.counts.total()
    rows: list[dict[str, Any]] = [{"line": line, "waits": count} for line, count in module.counts.items()]
    return [*rows, {"line": "in all", "waits": total, "ok": total <= ALLOWED}]
