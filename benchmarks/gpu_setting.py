"""Define device and sizes of the GPU check. Provide placeholders for packages that the machine may lack."""

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from unittest.mock import MagicMock

# Dense bfloat16 TFLOP/s from NVIDIA's data sheets.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
# Packages that stages use for files. The check reads and writes none, so placeholders suffice.
_FILES_ONLY = {"pyarrow": ("parquet", "compute", "dataset"), "xxhash": ()}


class SkipStep(Exception):
    """A step cannot run here. Its message, the reason, is recorded, and the step does not count as run."""


@dataclass(frozen=True)
class Setting:
    """Device and sizes of a check.

    Attributes:
        device: "cuda", or "cpu" to test the check itself with tiny sizes.
        model: a name in `workload.MODELS`, for timed training steps.
        large: the model of the whole training loop.
        layers: a model with some of the layers of `large`.
        shapes: (P, R, K) in tokens, tokens and negatives.
        max_tokens_per_microbatch: the limit for every contender.
        rounds: timed turns of every contender.
        sft_steps, prompts, samples: size of the ragged job.
        peak_tflops: the device's peak; None if unknown.
    """

    device: str
    model: str
    large: str
    layers: str
    shapes: tuple[tuple[int, int, int], ...]
    max_tokens_per_microbatch: int
    rounds: int
    sft_steps: int
    prompts: int
    samples: int
    peak_tflops: float | None

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    @classmethod
    def on(cls, device: str) -> "Setting":
        if device == "cpu":
            return cls("cpu", "qwen-tiny", "qwen-tiny", "qwen-tiny", ((9, 7, 1), (9, 7, 3)), 128, 1, 2, 6, 3, None)
        import torch

        name = torch.cuda.get_device_name()
        peak = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)
        shapes = ((256, 256, 1), (256, 256, 16), (1024, 256, 16), (256, 64, 16))
        return cls("cuda", "qwen-0.5b", "llama-7b", "llama-7b-8-layers", shapes, 16384, 3, 60, 256, 32, peak)


def stand_in_for_file_formats() -> None:
    """Import modules that read or write files, with placeholders for missing packages."""
    missing = {package: parts for package, parts in _FILES_ONLY.items() if find_spec(package) is None}
    if not missing:
        return
    # First import the libraries that look for these packages themselves; they must not find the placeholders.
    for library in ("lightning.pytorch", "transformers.generation", "transformers.modeling_layers"):
        import_module(library)
    names = [name for package, parts in missing.items() for name in (package, *(f"{package}.{p}" for p in parts))]
    sys.modules.update({name: MagicMock() for name in names})
    for module in ("store", "data.candidates", "generators.sampling", "training.reference"):
        import_module(f"selfcontrast.{module}")
    for name in names:
        del sys.modules[name]
