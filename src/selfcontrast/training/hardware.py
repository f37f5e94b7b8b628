"""The hardware settings of a training stage: devices, arithmetic and memory."""

import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

from selfcontrast.constrained import Count, Positive, Workers, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.models.attention.choice import ATTENTIONS, TRAINS_ON
from selfcontrast.store import NOT_IN_KEY

STRATEGIES = ("ddp", "fsdp2")
# 16-mixed is not supported: it scales gradients, so clipping would be wrong. For pure bf16 set model.dtype.
ARITHMETICS = ("32-true", "bf16-mixed")

# The limits of max_tokens_per_microbatch=auto, in training on a CPU and in work without a backward pass.
MAX_TOKENS_PER_MICROBATCH = {"cpu": 8192, "cuda": 16384}


@dataclass(frozen=True)
class Hardware:
    """The hardware of a training stage.

    Only `precision` and `rescore_reference` change the result; the other settings change speed and memory. The align
    stage adds `rescore_reference` to its key.
    """

    precision: str
    accelerator: str = field(metadata=NOT_IN_KEY)
    devices: Workers = field(metadata=NOT_IN_KEY)
    num_nodes: Workers = field(metadata=NOT_IN_KEY)
    strategy: str = field(metadata=NOT_IN_KEY)
    threads: Workers | None = field(metadata=NOT_IN_KEY)
    attention: str = field(metadata=NOT_IN_KEY)
    compile: bool = field(metadata=NOT_IN_KEY)
    max_tokens_per_microbatch: Count | Literal["auto"] = field(metadata=NOT_IN_KEY)
    logits_chunk: Count = field(metadata=NOT_IN_KEY)
    gradient_checkpointing: bool | Literal["selective"] = field(metadata=NOT_IN_KEY)
    bf16_copy: bool = field(metadata=NOT_IN_KEY)
    rescore_reference: bool = field(metadata=NOT_IN_KEY)
    checkpoint_every: Count = field(metadata=NOT_IN_KEY)
    peak_tflops: Positive | None = field(metadata=NOT_IN_KEY)
    self_check: bool = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "hardware")
        if self.precision not in ARITHMETICS:
            raise UserError(f"hardware.precision={self.precision} is unknown. Use one of {', '.join(ARITHMETICS)}.")
        if self.strategy not in STRATEGIES:
            raise UserError(f"hardware.strategy={self.strategy} is unknown. Use one of {', '.join(STRATEGIES)}.")
        if self.accelerator not in ("cpu", "gpu", "auto"):
            raise UserError(f"hardware.accelerator={self.accelerator} is unknown. Use cpu, gpu or auto.")
        if self.attention not in ATTENTIONS:
            raise UserError(f"hardware.attention={self.attention} is unknown. Use one of {', '.join(ATTENTIONS)}.")
        if self.bf16_copy and self.precision != "bf16-mixed":
            raise UserError("hardware.bf16_copy=true needs hardware.precision=bf16-mixed. Set it to false.")
        if self.bf16_copy and self.strategy == "fsdp2":
            raise UserError("hardware.bf16_copy=true: strategy=fsdp2 gathers bfloat16 weights anyway. Set it to false.")
        if self.rescore_reference and self.strategy == "fsdp2":
            raise UserError("hardware.rescore_reference=true needs the whole policy on one device. Use strategy=ddp.")
        if self.rescore_reference and self.compile:
            raise UserError(
                "hardware.rescore_reference=true: compiled layers round differently in training than in scoring, so "
                "margins at step 0 would not be 0. Set compile=false."
            )
        if self.rescore_reference and self.max_tokens_per_microbatch == "auto":
            raise UserError(
                "hardware.rescore_reference=true needs micro-batches of a fixed size. "
                "Set max_tokens_per_microbatch to a number."
            )

    def check(self) -> None:
        """Raise `UserError` if the machine lacks something that the config needs."""
        if self.accelerator == "gpu" and _gpus() == 0:
            raise UserError("hardware.accelerator=gpu, but torch sees no GPU. Use hardware=cpu.")
        if self.device == "cuda" and self.devices > _gpus():
            raise UserError(f"hardware.devices={self.devices}, but torch sees {_gpus()} GPUs. Lower it.")
        if self.attention not in TRAINS_ON[self.device]:
            raise UserError(f"hardware.attention={self.attention} cannot train on {self.device}. Use auto.")
        if self.compile and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
            raise UserError("hardware.compile=true needs a C++ compiler (g++). Install one, or set it to false.")

    def check_quantised(self) -> None:
        """Raise `UserError` if these settings cannot train a policy on a quantised base."""
        reasons = {
            f"devices={self.devices} and num_nodes={self.num_nodes} cannot be used. Use one device.": (
                self.devices * self.num_nodes > 1
            ),
            "strategy=fsdp2 cannot be used: it cannot shard 4-bit weights. Use ddp.": self.strategy == "fsdp2",
            "bf16_copy=true cannot be used: frozen weights need no copies. Set it to false.": self.bf16_copy,
            "max_tokens_per_microbatch=auto cannot be used: the reference is scored before training. Set a number.": (
                self.max_tokens_per_microbatch == "auto"
            ),
        }
        for reason, holds in reasons.items():
            if holds:
                raise UserError(f"adapter=qlora with hardware.{reason}")

    def fixed_tokens_per_microbatch(self) -> int:
        """Return the config's number; for auto, a default that does not depend on free memory."""
        return (
            MAX_TOKENS_PER_MICROBATCH[self.device]
            if self.max_tokens_per_microbatch == "auto"
            else self.max_tokens_per_microbatch
        )

    @property
    def device(self) -> str:
        """The type of the device that computes: "cuda" or "cpu"."""
        return "cuda" if self.accelerator != "cpu" and _gpus() else "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context in which Lightning runs a training step."""
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def apply_threads(self) -> None:
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)


def _gpus() -> int:
    """Return the number of usable GPUs. It imports torch itself, so that a CPU job does not wait for torch."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
