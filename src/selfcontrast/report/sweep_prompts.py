"""How many prompts the jobs of a sweep trained on, shown wherever that differs between them.

Methods need different things of a prompt, so the same data leaves them different prompts (docs/reproduction.md).
"""

import math
from collections.abc import Sequence

from selfcontrast.report import text
from selfcontrast.report.sweep import Sweep, SweepJob


def different_prompts(sweep: Sweep) -> str:
    """Say how many prompts the jobs of each variant trained on; "" where all trained on as many."""
    if not _uneven(sweep):
        return ""
    parts = []
    for variant in sweep.variants:
        if found := _known([job for job in sweep.jobs if job.variant == variant]):
            ends = dict.fromkeys((text.count(min(found)), text.count(max(found))))
            parts.append(f"{variant} {' to '.join(ends)}".strip())
    return f"The jobs trained on different numbers of prompts: {', '.join(parts)}. This may explain differences."


def with_prompts(
    sweep: Sweep, heads: list[str], rows: list[list[str]], jobs: Sequence[Sequence[SweepJob]]
) -> tuple[list[str], list[list[str]]]:
    """Add a column with the mean number of prompts to a table, where the jobs differ in it.

    Args:
        jobs: those of each row.
    """
    if not _uneven(sweep):
        return heads, rows
    means = [sum(found) / len(found) if (found := _known(own)) else None for own in jobs]
    return [*heads, "prompts"], [[*row, text.count(mean)] for row, mean in zip(rows, means, strict=True)]


def _uneven(sweep: Sweep) -> bool:
    return len(set(_known(sweep.jobs))) > 1


def _known(jobs: Sequence[SweepJob]) -> list[float]:
    """The numbers of prompts; none for a job without preference training."""
    return [count for job in jobs if math.isfinite(count := float(job.align["summary"].get("prompts", math.nan)))]
