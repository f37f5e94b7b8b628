"""Record what produced a result: versions, commit, machine. None of it is secret."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = (
    "selfcontrast",
    "torch",
    "transformers",
    "lightning",
    "sentence-transformers",
    "hydra-core",
    "wandb",
    "lm-eval",
)
OPTIONAL = ("peft", "bitsandbytes")


@cache
def provenance() -> dict[str, Any]:
    """Return versions of the packages that can change results, the git commit ("+" if modified), and the hardware."""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in (*PACKAGES, *filter(find_spec, OPTIONAL))},
        "commit": commit(),
        "platform": platform.platform(),
        "processor": processor(),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "command": Path(sys.argv[0]).name,
    }


def commit() -> str:
    """Return the commit of the checkout that contains this package, or "unknown" for an installed copy."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def processor() -> str:
    """Return the name of the accelerator if there is one, else of the processor."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"
