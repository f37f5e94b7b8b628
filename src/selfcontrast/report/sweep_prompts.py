"""Say how many prompts the jobs of a sweep trained on, if the jobs differ in it.

Methods drop prompts for different reasons, so they keep different prompts of the same data (docs/reproduction.md).
"""

import math
from collections.abc import Sequence

from selfcontrast.report import text
from selfcontrast.report.sweep import Sweep, SweepJob


def different_prompts(sweep: Sweep) -> str:
    """Say how many prompts the jobs of each variant trained on; "" if all trained on the same number."""
    if not _differ(sweep):
        return ""
    parts = []
    for variant in sweep.variants:
        if counts := _prompt_counts([job for job in sweep.jobs if job.variant == variant]):
            ends = dict.fromkeys((text.count(min(counts)), text.count(max(counts))))
            parts.append(f"{variant} {' to '.join(ends)}".strip())
    return f"The jobs trained on different numbers of prompts: {', '.join(parts)}. This may explain differences."


def with_prompts(
    sweep: Sweep, heads: list[str], rows: list[list[str]], jobs: Sequence[Sequence[SweepJob]]
) -> tuple[list[str], list[list[str]]]:
    """Add a column with the mean number of prompts to a table, if the jobs differ in it.

    Args:
        jobs: the jobs of each row.
    """
    if not _differ(sweep):
        return heads, rows
    means = [sum(counts) / len(counts) if (counts := _prompt_counts(row_jobs)) else None for row_jobs in jobs]
    return [*heads, "prompts"], [[*row, text.count(mean)] for row, mean in zip(rows, means, strict=True)]


def _differ(sweep: Sweep) -> bool:
    return len(set(_prompt_counts(sweep.jobs))) > 1


def _prompt_counts(jobs: Sequence[SweepJob]) -> list[float]:
    """Return the numbers of prompts, without jobs that have no preference training."""
    return [count for job in jobs if math.isfinite(count := float(job.align["summary"].get("prompts", math.nan)))]
