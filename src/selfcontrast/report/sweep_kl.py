"""A sweep's jobs by their distance from the fine-tuned model: score against KL, and scores at equal KL."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcontrast.evaluation.statistics import over_seeds
from selfcontrast.evaluation.statistics.equal_kl import KLPath, at_equal_kl, score_at
from selfcontrast.report import text
from selfcontrast.report.against_kl import KL_AXIS, path
from selfcontrast.report.figures import axis_label
from selfcontrast.report.style import COLOURS, MARKERS, SERIES, legend_name, styled
from selfcontrast.report.sweep import Point, Sweep, SweepJob, comparable, mean, point_name

if TYPE_CHECKING:
    from selfcontrast.evaluation.curve import CurvePoint

MOST_NAMED = 10  # methods in the figure's legend: the best
STRAIGHT = (
    "Some jobs have no checkpoint between SFT and the policy: their scores are interpolated over the whole training. "
    "evaluation.checkpoints=4 measures it."
)
OTHER_PROMPTS = "The jobs were measured on different prompts: point estimates, without intervals."
OVER_PROMPTS = "Intervals: bootstrap over prompts; each sample has its own lines and its own smallest final KL."
OVER_SEEDS = (
    "Means over seeds; intervals are Student's t over seeds. A difference uses the seeds that both methods have."
)
# Reasons why two methods have no difference.
NO_SEED = "have no seed in common with it"
OTHER_MODEL = "begin with another fine-tuned model, from which their KL is measured"
OTHER_DECODING = "were measured at another decoding"
OTHER_IDS = "were measured on other prompts"


Row = list[str]


@dataclass(frozen=True)
class Compared:
    """Methods at the same KL: heads and rows of a table, and the notes that it needs."""

    heads: Row
    rows: list[Row]
    notes: list[str]


def with_kl(
    heads: list[str], rows: list[list[str]], jobs: Sequence[Sequence[SweepJob]]
) -> tuple[list[str], list[list[str]]]:
    """Add columns of KL and entropy, means over the jobs of each row, where any job knows them."""
    last = [[points[-1] for job in row_jobs if (points := _points(job))] for row_jobs in jobs]
    if not any(last):
        return heads, rows
    cells = [[_mean(row_jobs, "kl"), _mean(row_jobs, "entropy")] for row_jobs in last]
    return [*heads, "KL", "entropy"], [[*row, *more] for row, more in zip(rows, cells, strict=True)]


def columns(job: SweepJob) -> dict[str, Any]:
    """Return the KL columns of `results.csv`: the policy's KL with its interval, and both models' entropy."""
    if not (points := _points(job)):
        return {}
    sft, policy = points[0], points[-1]
    kl = policy["kl"]
    cells: dict[str, Any] = {"kl": kl["estimate"], "kl_low": kl["low"], "kl_high": kl["high"]}
    cells |= {"entropy": policy["entropy"]["estimate"], "sft_entropy": sft["entropy"]["estimate"]}
    return cells | {"entropy_per_token": policy["entropy_per_token"]["estimate"]}


@styled()
def figure(sweep: Sweep) -> Figure | None:
    """Score against KL, a line per job from its fine-tuned model to its policy; None if no job has both."""
    methods = _methods(sweep)
    if not methods:
        return None
    drawn = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = drawn.subplots()
    comparables, _ = comparable(methods)
    by_score = sorted(zip(comparables, methods, strict=True), key=lambda pair: -mean(pair[0].jobs))
    best = [method for _, method in by_score[:MOST_NAMED]]
    others = [method for method in methods if method not in best]
    for method in others:  # below the others
        label = f"{len(others)} more" if method is others[0] else None
        _draw_method(axes, method, label, COLOURS["muted"], MARKERS[0], alpha=0.35)
    for index, method in enumerate(best):
        look = SERIES[index % len(SERIES)], MARKERS[index // len(SERIES)]
        _draw_method(axes, method, legend_name(point_name(sweep, method)), *look, alpha=0.8)
    axes.set_xlabel(KL_AXIS)
    axes.set_ylabel(axis_label(sweep.jobs[0].result.comparison["measure"]))
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=8)
    return drawn


def _draw_method(axes: Axes, method: Point, label: str | None, colour: str, marker: str, alpha: float) -> None:
    for job in method.jobs:
        points = _points(job)
        path(axes, points, colour, alpha=alpha)
        for point in points[1:]:
            size = 4 if point["checkpoint"] else 7
            x, y = point["kl"]["estimate"], point["score"]["estimate"]
            axes.plot(x, y, marker=marker, color=colour, markersize=size, markeredgewidth=0, alpha=alpha)
        start = points[0]["score"]["estimate"]
        axes.plot(0, start, marker="o", color=COLOURS["sft"], markersize=7, markeredgewidth=0)
    if label:
        axes.plot([], [], marker=marker, color=colour, markersize=6, markeredgewidth=0, alpha=alpha, label=label)


def equal_kl(sweep: Sweep) -> Compared | None:
    """Compare methods at the smallest final KL of their jobs; None for a single method.

    A method with a job whose estimated KL is not above 0 is left out, since its policy has not moved.
    """
    methods = _methods(sweep)
    if len(methods) < 2:
        return None
    unmoved = [
        f"{point_name(sweep, method)} (KL {text.number(_lowest_kl(method), 2)})"
        for method in methods
        if _lowest_kl(method) <= 0
    ]
    methods = [method for method in methods if _lowest_kl(method) > 0]
    lacking = [
        point_name(sweep, point) for point in sweep.points if not any(len(_points(job)) > 1 for job in point.jobs)
    ]
    without = [f"Left out, since no KL is known: {', '.join(lacking)}."] if lacking else []
    without += [f"Left out, since a policy has not moved away from SFT: {', '.join(unmoved)}."] if unmoved else []
    if len(methods) < 2:
        return Compared([], [], ["Fewer than two methods can be compared at equal KL.", *without])
    jobs, kl = [job for method in methods for job in method.jobs], min(map(_lowest_kl, methods))
    names = [point_name(sweep, method) for method in methods]
    unlike = [_unlike(sweep, methods[0], method) for method in methods]
    notes = [f"Differences are from {names[0]}.", *_no_difference(names, unlike)]
    if any(len(method.jobs) > 1 for method in methods):
        cells, note = _over_seeds(methods, kl), OVER_SEEDS
    elif len({tuple(_ids(job)) for job in jobs}) == 1:
        cells, note = _over_prompts(jobs), OVER_PROMPTS
    else:
        cells, note, notes = [[text.number(_score_at(job, kl)), text.NONE] for job in jobs], OTHER_PROMPTS, []
    cells = [[score, text.NONE if why else change] for (score, change), why in zip(cells, unlike, strict=True)]
    straight = [STRAIGHT] if any(len(_points(job)) == 2 for job in jobs) else []
    heads = ["method", "final KL", f"{sweep.measure} at KL {text.number(kl, 2)}", "difference"]
    rows = [[name, _final_kl(method), *scores] for name, method, scores in zip(names, methods, cells, strict=True)]
    if any(method.seeds != sweep.seeds for method in methods):
        heads, rows = _with_seeds(heads, rows, methods)
    return Compared(heads, rows, [note, *notes, *without, *straight])


def _with_seeds(heads: Row, rows: list[Row], methods: Sequence[Point]) -> tuple[Row, list[Row]]:
    """Add columns with the seeds of each score and each difference, which differ between methods."""

    def listed(seeds: Sequence[int]) -> str:
        return ", ".join(map(str, seeds)) or text.NONE

    cells = []
    for (name, final, score, change), method in zip(rows, methods, strict=True):
        shared = listed([*_pairs(methods[0], method)]) if change != text.NONE else text.NONE
        cells.append([name, final, score, listed(method.seeds), change, shared])
    return [*heads[:3], "seeds", heads[3], "on seeds"], cells


def _unlike(sweep: Sweep, first: Point, other: Point) -> str:
    """Say why two methods cannot be compared at equal KL; "" if they can be."""
    pairs = _pairs(first, other)
    if not pairs:
        return NO_SEED
    if not any({first.variant, other.variant} <= {*members} for members in sweep.baselines):
        return OTHER_MODEL
    if any(_decoding(job) != _decoding(other_job) for job, other_job in pairs.values()):
        return OTHER_DECODING
    return OTHER_IDS if any(_ids(job) != _ids(other_job) for job, other_job in pairs.values()) else ""


def _no_difference(names: Sequence[str], unlike: Sequence[str]) -> list[str]:
    """Return a sentence per reason, with the methods to which it applies."""
    by_reason = [
        (why, ", ".join(name for name, reason in zip(names, unlike, strict=True) if reason == why))
        for why in dict.fromkeys(filter(None, unlike))
    ]
    return [f"No difference from {names[0]} for methods that {why}: {methods}." for why, methods in by_reason]


def _pairs(first: Point, other: Point) -> dict[int, tuple[SweepJob, SweepJob]]:
    """Return the jobs of both methods, by the seeds that both have."""
    first_jobs, other_jobs = ({job.result.seed: job for job in method.jobs} for method in (first, other))
    return {seed: (first_jobs[seed], other_jobs[seed]) for seed in sorted(first_jobs.keys() & other_jobs.keys())}


def _over_prompts(jobs: Sequence[SweepJob]) -> list[Row]:
    """Return score and difference from the first method, for one job per method."""
    paths = [
        KLPath([point["by_prompt"]["kl"] for point in points], [point["by_prompt"]["score"] for point in points])
        for points in map(_points, jobs)
    ]
    evaluation = jobs[0].result.config["evaluation"]
    options = {name: evaluation[name] for name in ("confidence", "n_bootstrap", "seed")}
    comparison = at_equal_kl(paths, **options)
    pairs = zip(comparison.scores, comparison.differences, strict=True)
    cells = [[text.interval(asdict(score)), text.interval(asdict(change), signed=True)] for score, change in pairs]
    return [[cells[0][0], text.NONE], *cells[1:]]


def _over_seeds(methods: Sequence[Point], kl: float) -> list[Row]:
    """Return scores as means over each method's seeds, and differences from the first over the seeds of both."""
    confidence = methods[0].jobs[0].row["mean"]["confidence"]

    def cell(values: Sequence[float], signed: bool = False) -> str:
        if len(values) == 1:  # no interval over seeds
            return text.number(values[0], signed=signed)
        return text.interval(asdict(over_seeds(values, confidence=confidence)), signed=signed)

    rows = []
    for method in methods:
        pairs = _pairs(methods[0], method)
        changes = [_score_at(job, kl) - _score_at(first, kl) for first, job in pairs.values()]
        rows.append(
            [cell([_score_at(job, kl) for job in method.jobs]), cell(changes, signed=True) if pairs else text.NONE]
        )
    return [[rows[0][0], text.NONE], *rows[1:]]


def _score_at(job: SweepJob, kl: float) -> float:
    points = _points(job)
    kls, scores = (np.array([[point[name]["estimate"] for point in points]]) for name in ("kl", "score"))
    return float(score_at(kls, scores, np.array([kl]))[0])


def _methods(sweep: Sweep) -> list[Point]:
    """Return the points of the sweep, each with its jobs that have a policy whose KL is known."""
    methods = [Point([job for job in point.jobs if len(_points(job)) > 1], point.p_holm) for point in sweep.points]
    return [method for method in methods if method.jobs]


def _lowest_kl(method: Point) -> float:
    """Return the lowest final KL of the method's jobs."""
    return float(min(_points(job)[-1]["kl"]["estimate"] for job in method.jobs))


def _final_kl(method: Point) -> str:
    return _mean([_points(job)[-1] for job in method.jobs], "kl")


def _points(job: SweepJob) -> "list[CurvePoint]":
    curve = job.result.against_kl
    return curve["points"] if curve else []


def _ids(job: SweepJob) -> list[str]:
    curve = job.result.against_kl
    return curve["ids"] if curve else []


def _decoding(job: SweepJob) -> str:
    curve = job.result.against_kl
    return curve["decoding"] if curve else ""


def _mean(points: "Sequence[CurvePoint]", name: Literal["kl", "entropy"]) -> str:
    values = [point[name]["estimate"] for point in points]
    return text.number(sum(values) / len(values), 2) if values else text.NONE
