"""Measure seconds, memory and gradients of a contender's step, on a CPU or a GPU."""

import ctypes
import gc
import math
import time
from pathlib import Path

import torch
from contenders import Contender
from torch import Tensor


def seconds(contender: Contender, batches: int) -> float:
    """Return the mean seconds per step over all batches."""
    total = 0.0
    for i in range(batches):
        contender.take_turn()
        _wait(contender)
        start = time.perf_counter()
        contender.step(i)
        _wait(contender)
        total += time.perf_counter() - start
    return total / batches


def _wait(contender: Contender) -> None:
    if contender.model.device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(contender: Contender, batches: int) -> float | None:
    """Return the peak memory of a step in MB, minus the memory before it; None if Linux does not report it."""
    contender.take_turn()
    gc.collect()
    if contender.model.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(contender, batches)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        resident = status("VmRSS")
        seconds(contender, batches)
    except OSError:
        return None
    return (status("VmHWM") - resident) / 1024


def status(key: str) -> int:
    """Read a value of /proc/self/status in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def gradients(contender: Contender) -> list[Tensor] | None:
    """Return the gradients of the first batch on the CPU; None if the step runs out of memory."""
    try:
        contender.take_turn()
        contender.step(0)
    except torch.OutOfMemoryError:
        contender.model.zero_grad()
        return None
    return [p.grad.cpu() for p in contender.model.parameters() if p.grad is not None]


def difference(gradients: list[Tensor], expected: list[Tensor]) -> float:
    """Return the relative distance of two gradients."""
    squared = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(gradients, expected, strict=True))
    return math.sqrt(squared / sum(float(b.double().square().sum()) for b in expected))
