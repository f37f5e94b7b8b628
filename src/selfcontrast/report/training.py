"""Describe a training run in sentences that the page shows beside its curves."""

import statistics
from collections.abc import Sequence

from selfcontrast.report.text import count, number, percent

Records = Sequence[dict[str, float]]
TENTH = 10


def ranks(records: Records) -> int:
    """Return the largest number of negatives that any prompt was trained with."""
    names = {name for record in records for name in record if name.startswith("accuracy_rank_")}
    return len(names)


def mean_of(records: Records, name: str) -> float | None:
    """Return the mean over the records that have this metric; None if none has."""
    values = [record[name] for record in records if record.get(name) is not None]
    return statistics.fmean(values) if values else None


def ends(records: Records) -> tuple[Records, Records]:
    """Return the first and the last tenth of the steps, at least one step each."""
    size = -(-len(records) // TENTH)
    return records[:size], records[-size:]


def throughput(records: Records) -> str:
    """Return the median speed over steps and the peak memory in one line; "" if nothing was measured."""
    parts = []
    for name, unit in (("tokens_per_second", "tokens/s"), ("prompts_per_second", "prompts/s")):
        if (value := _median(records, name)) is not None:
            parts.append(f"{count(float(f'{value:.3g}'))} {unit}")
    if (speed := _median(records, "tflops")) is not None:
        utilisation = _median(records, "mfu")
        of_peak = f" ({percent(utilisation)} of its peak)" if utilisation is not None else ""
        parts.append(f"{speed:.3g} TFLOP/s of model FLOPs per device{of_peak}")
    if peaks := [r["peak_memory_gib"] for r in records if "peak_memory_gib" in r]:
        parts.append(f"peak memory {number(max(peaks), 1)} GiB")
    return ", ".join(parts)


def step_zero(records: Records) -> str:
    """Return a sentence with the loss and the margins at the first step of preference training.

    Return "" without a reference.
    """
    first = next((record for record in records if "step0/loss" in record), None)
    if first is None:
        return ""
    loss, expected, noise = (first[f"step0/{name}"] for name in ("loss", "expected_loss", "margin_std"))
    return (
        f"At step 0, where the policy is the reference, the loss was {number(loss, 4)} (with every margin at 0: "
        f"{number(expected, 4)}), and margins were {noise:.2g} away from 0."
    )


def _median(records: Records, name: str) -> float | None:
    values = [record[name] for record in records if name in record]
    return statistics.median(values) if values else None
