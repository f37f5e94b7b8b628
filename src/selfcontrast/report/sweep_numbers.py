"""A sweep's numbers as table rows, by point and by job, and as a data frame by job."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from selfcontrast.report import text
from selfcontrast.report.sweep import Point, Sweep, SweepJob
from selfcontrast.report.sweep_kl import columns, with_kl
from selfcontrast.report.sweep_prompts import with_prompts

# Heads of `numbers` after the measure. The last three are a point's costs: time and tokens of preference training, and
# the time of all stages, as if nothing were shared.
HEADS = ("difference from SFT", "wins", "p", "Holm", "used", "align", "tokens", "total time")

UNKNOWN = dict.fromkeys(("estimate", "low", "high"), math.nan)  # a job without a policy has no difference

Row = list[str]


def numbers(point: Point) -> Row:
    """Return the cells under `HEADS`: one job's values and intervals, or means over seeds with intervals over seeds."""
    jobs = point.jobs
    return [
        text.interval(point.measured("mean")),
        text.interval(point.measured("difference"), signed=True),
        text.percent((point.measured("win_rate") or UNKNOWN)["estimate"]),
        text.p_value(point.p_value),
        text.p_value(point.p_holm),
        text.number(_mean([job.negatives_used for job in jobs]), 1),
        text.duration(_mean([job.align["seconds"] for job in jobs])),
        text.large(_mean([job.tokens for job in jobs])),
        text.duration(_mean([job.seconds for job in jobs])),
    ]


# Columns that a page shows in a second table: what a row costs and what it was trained on.
DETAILS = ("used", "align", "tokens", "total time", "entropy", "prompts")


def split(names: int, heads: Row, rows: list[Row]) -> tuple[tuple[Row, list[Row]], tuple[Row, list[Row]]]:
    """Split a wide table in two that fit a page: the scores, and the columns of `DETAILS`.

    Args:
        names: how many columns at the left name a row. Both tables have them.
    """
    main = [index for index, head in enumerate(heads) if head not in DETAILS]
    details = [*range(names), *(index for index, head in enumerate(heads) if head in DETAILS)]
    first, second = (
        ([heads[index] for index in indices], [[row[index] for index in indices] for row in rows])
        for indices in (main, details)
    )
    return first, second


def by_point(sweep: Sweep) -> tuple[Row, list[Row]]:
    """Return heads and one row per variant and K, with means over seeds."""
    varied = len(sweep.variants) > 1
    heads = [*(["variant"] if varied else []), "K", "seeds", sweep.measure, *HEADS]
    rows = [
        [*([point.variant] if varied else []), str(point.k), seeds_cell(sweep, point), *numbers(point)]
        for point in sweep.points
    ]
    return _with_optional_columns(sweep, heads, rows, [point.jobs for point in sweep.points])


def seeds_cell(sweep: Sweep, point: Point) -> str:
    """Return how many seeds a point has. If other points have more, list its seeds."""
    named = f" ({', '.join(map(str, point.seeds))})" if point.seeds != sweep.seeds else ""
    return f"{len(point.jobs)}{named}"


def by_job(sweep: Sweep) -> tuple[Row, list[Row]]:
    """Return heads and one row per job. Its p-value is corrected for the number of jobs."""
    heads = ["job", "variant", "K", "seed", sweep.measure, *HEADS]
    rows = []
    for job in sweep.jobs:
        cells = [job.folder, job.variant or text.NONE, str(job.result.negatives), str(job.result.seed)]
        rows.append([*cells, *numbers(Point([job], job.p_holm))])
    return _with_optional_columns(sweep, heads, rows, [[job] for job in sweep.jobs])


def frame(sweep: Sweep) -> pd.DataFrame:
    """Return the content of `results.csv`: one row per job."""
    rows = []
    for job in sweep.jobs:
        row: dict[str, Any] = {"job": job.folder, "variant": job.variant, "negatives": job.result.negatives}
        row |= {"seed": job.result.seed, "decoding": job.base["decoding"]}
        row |= _bounds(job.result.comparison["measure"], job.row["mean"]) | _bounds("sft", job.base["mean"])
        row |= _bounds("difference", job.row.get("difference")) | _bounds("win_rate", job.row.get("win_rate"))
        row |= {"p_value": job.row.get("p_value"), "p_holm": job.p_holm}
        row |= {"nll": job.row["nll"], "tokens_per_answer": job.row["tokens"]}
        row |= columns(job)
        row |= {"negatives_per_prompt": job.negatives_used, "prompts_aligned": job.align["summary"].get("prompts")}
        row |= {"align_seconds": job.align["seconds"], "seconds": job.seconds}
        row["seconds_own"] = sum(stage["seconds"] for stage in job.result.stages if not stage["cached"])
        row |= {"align_steps": job.align["summary"].get("steps"), "align_tokens": job.tokens}
        row |= {"sampled_tokens": job.sampled_tokens, "policy": job.result.policy}
        rows.append(row)
    return pd.DataFrame(rows)


def _with_optional_columns(
    sweep: Sweep, heads: Row, rows: list[Row], jobs: Sequence[Sequence[SweepJob]]
) -> tuple[Row, list[Row]]:
    """Add the columns that not every sweep has. `jobs` are the jobs of each row."""
    return with_prompts(sweep, *with_kl(heads, rows, jobs), jobs)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _bounds(name: str, value: Mapping[str, Any] | None) -> dict[str, float]:
    value = value or UNKNOWN
    return {name: value["estimate"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
