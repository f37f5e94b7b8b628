"""What a stage is trained on: devices, arithmetic and memory."""

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
# Not 16-mixed, whose gradients are scaled and would be clipped as such; for all of bf16 there is model.dtype.
ARITHMETICS = ("32-true", "bf16-mixed")

# Of max_tokens_per_microbatch=auto: in training on a CPU, and wherever there is no backward pass.
MAX_TOKENS_PER_MICROBATCH = {"cpu": 8192, "cuda": 16384}


@dataclass(frozen=True)
class Hardware:
    """Where a stage is trained. `precision` decides the result; the rest decides how fast it is had."""

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
            raise UserError(f"hardware.precision={self.precision}: one of {', '.join(ARITHMETICS)}")
        if self.strategy not in STRATEGIES:
            raise UserError(f"hardware.strategy={self.strategy}: one of {', '.join(STRATEGIES)}")
        if self.accelerator not in ("cpu", "gpu", "auto"):
            raise UserError(f"hardware.accelerator={self.accelerator}: cpu, gpu or auto")
        if self.attention not in ATTENTIONS:
            raise UserError(f"hardware.attention={self.attention}: one of {', '.join(ATTENTIONS)}")
        if self.bf16_copy and self.precision != "bf16-mixed":
            raise UserError("hardware.bf16_copy=true is for hardware.precision=bf16-mixed: leave it false")
        if self.bf16_copy and self.strategy == "fsdp2":
            raise UserError("hardware.bf16_copy=true: strategy=fsdp2 gathers bfloat16 by itself: leave it false")
        if self.rescore_reference and self.strategy == "fsdp2":
            raise UserError("hardware.rescore_reference=true needs a device that holds the policy: use strategy=ddp")
        if self.rescore_reference and self.max_tokens_per_microbatch == "auto":
            raise UserError(
                "hardware.rescore_reference=true needs to know the passes: give max_tokens_per_microbatch a number"
            )

    def check(self) -> None:
        """Raises `UserError` where the machine lacks what the config asks for."""
        if self.accelerator == "gpu" and _gpus() == 0:
            raise UserError("hardware.accelerator=gpu, but torch sees no GPU here: use hardware=cpu")
        if self.device == "cuda" and self.devices > _gpus():
            raise UserError(f"hardware.devices={self.devices}, but torch sees {_gpus()} GPUs here")
        if self.attention not in TRAINS_ON[self.device]:
            raise UserError(f"hardware.attention={self.attention} cannot train on {self.device}: use auto")
        if self.compile and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
            raise UserError("hardware.compile=true needs a C++ compiler (g++): install one, or leave it false")

    def check_quantised(self) -> None:
        """Raises `UserError` where a policy on a quantised base cannot be trained."""
        reasons = {
            f"devices={self.devices} and num_nodes={self.num_nodes}: use one device": self.devices * self.num_nodes > 1,
            "strategy=fsdp2: it cannot shard 4 bits; use ddp": self.strategy == "fsdp2",
            "bf16_copy=true: frozen weights need no copies; leave it false": self.bf16_copy,
            "max_tokens_per_microbatch=auto: its reference is scored in training's own passes; give a number": (
                self.max_tokens_per_microbatch == "auto"
            ),
        }
        for reason, holds in reasons.items():
            if holds:
                raise UserError(f"adapter=qlora with hardware.{reason}")

    def fixed_tokens_per_microbatch(self) -> int:
        """The number in the config; where it says auto, one that needs no look at the memory."""
        return (
            MAX_TOKENS_PER_MICROBATCH[self.device]
            if self.max_tokens_per_microbatch == "auto"
            else self.max_tokens_per_microbatch
        )

    @property
    def device(self) -> str:
        """Where the stages that are not trained run their models."""
        return "cuda" if self.accelerator != "cpu" and _gpus() else "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """What Lightning runs a training step in."""
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def apply_threads(self) -> None:
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)


def _gpus() -> int:
    """Count the GPUs that torch can use; a job on the CPU does not wait for torch's import."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
