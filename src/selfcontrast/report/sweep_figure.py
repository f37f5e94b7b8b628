"""A sweep's figure: score against K, or a ranking if there are many variants."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcontrast.report.figures import axis_label
from selfcontrast.report.style import COLOURS, MARKERS, SERIES, dot, legend_name, styled
from selfcontrast.report.sweep import Point, Sweep, comparable, control_of, mean, point_name
from selfcontrast.report.text import number
from selfcontrast.report.verdict import BASELINE

MOST_CURVES = 10  # variants that a figure against K can tell apart; more are ranked
MOST_RANKED = 30  # rows of a ranking


def figure(sweep: Sweep) -> Figure:
    """Draw score against K; a ranking of points if there are more than `MOST_CURVES` variants."""
    return ranking(sweep) if is_ranked(sweep) else against_k(sweep)


def is_ranked(sweep: Sweep) -> bool:
    return len(sweep.variants) > MOST_CURVES


def ranked(sweep: Sweep) -> list[Point]:
    """Return the points of the ranking, best first, each on the seeds that all points share."""
    points, _ = comparable(sweep.points)
    return sorted(points, key=lambda point: -mean(point.jobs))[:MOST_RANKED]


@styled()
def ranking(sweep: Sweep) -> Figure:
    """Draw one row per point: its mean, its seeds or its interval, and SFT on the same seeds as a tick."""
    points = ranked(sweep)
    canvas = Figure(figsize=(7.2, 1.0 + 0.26 * len(points)), layout="constrained")
    axes = canvas.subplots()
    for row, point in enumerate(points):
        label = {"SFT": "SFT on the same seeds", "policy": "policy"} if row == 0 else {}
        sft, score = mean(point.jobs, base=True), mean(point.jobs)
        axes.plot([sft], [row], "|", color=COLOURS["sft"], markersize=11, markeredgewidth=2, label=label.get("SFT"))
        if len(point.jobs) == 1:
            dot(axes, point.jobs[0].row["mean"], row, COLOURS["policy"], label=label.get("policy"))
        else:
            seeds = [job.row["mean"]["estimate"] for job in point.jobs]
            axes.plot(
                seeds, [row] * len(seeds), "o", color=COLOURS["policy"], alpha=0.45, markersize=4, markeredgewidth=0
            )
            axes.plot(
                [score],
                [row],
                "o",
                color=COLOURS["policy"],
                markersize=6.5,
                markeredgewidth=0,
                label=label.get("policy"),
            )
        axes.annotate(
            number(score),
            (1, row),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=COLOURS["muted"],
        )
    axes.set_yticks(range(len(points)), [point_name(sweep, point) for point in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(axis_label(sweep.jobs[0].result.comparison["measure"]))
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=8)
    return canvas


@styled()
def against_k(sweep: Sweep) -> Figure:
    """Draw score against K on a log2 axis, together with SFT at the first decoding and at its best sharper one.

    If other variants have several K, a variant with a single K is drawn as a baseline: a dotted line.
    """
    canvas = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = canvas.subplots()
    _levels(axes, sweep)
    curves = [variant for variant in sweep.variants if len(sweep.of(variant)) > 1] or sweep.variants
    for index, variant in enumerate(sweep.variants):
        colour, marker = SERIES[index % len(SERIES)], MARKERS[index // len(SERIES)]
        if variant in curves:
            shift = 2 ** (0.1 * (curves.index(variant) - (len(curves) - 1) / 2))
            _series(axes, sweep, variant, colour, marker, shift)
        else:
            _baseline(axes, sweep.of(variant)[0], colour, marker)
    ks = sorted({job.result.negatives for job in sweep.jobs})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ks[0] / 1.25, ks[-1] * 1.25)
    axes.set_xlabel("K: negatives per prompt")
    axes.set_ylabel(axis_label(sweep.jobs[0].result.comparison["measure"]))
    axes.grid(axis="x", visible=False)
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=8)
    return canvas


def _baseline(axes: Axes, point: Point, colour: str, marker: str) -> None:
    level = mean(point.jobs)
    axes.axhline(level, color=colour, linewidth=1.0, linestyle=":")
    label = legend_name(point.variant)
    axes.plot([point.k], [level], color=colour, marker=marker, linestyle=":", markersize=5, label=label)


def _series(axes: Axes, sweep: Sweep, variant: str, colour: str, marker: str, shift: float) -> None:
    points = sweep.of(variant)
    ks = [point.k * shift for point in points]
    method = str(points[0].jobs[0].result.config.get("label", "Self-Contrast"))
    label = variant if variant.startswith(method) else method + (f", {variant}" if variant else "")
    look: Any = {"color": colour, "marker": marker, "markeredgewidth": 0}
    same_seeds, _ = comparable(points)  # so that other seeds do not make the line rise or fall
    means = [mean(point.jobs) for point in same_seeds]
    axes.plot(ks, means, linewidth=1.2, label=legend_name(label), markersize=6.5, **look)
    for k, point in zip(ks, points, strict=True):
        if len(point.jobs) == 1:
            dot(axes, point.jobs[0].row["mean"], k, colour, vertical=True)
        else:
            seeds = [job.row["mean"]["estimate"] for job in point.jobs]
            axes.plot([k] * len(seeds), seeds, linestyle="", alpha=0.45, markersize=4, **look)


def _levels(axes: Axes, sweep: Sweep) -> None:
    """Draw SFT at the first decoding and at its best sharper one, with estimates and bounds averaged over jobs.

    Each SFT model that variants start from has its own lines, for example if variants are trained on other data.
    """
    for variants in sweep.baselines:
        jobs = [job for job in sweep.jobs if job.variant in variants]
        rows = [row for job in jobs for row in job.result.comparison["rows"] if row["system"] == BASELINE]
        control = control_of(jobs)
        suffix = f" ({variants[0]})" if len(sweep.baselines) > 1 else ""
        for decoding, line in zip([sweep.decoding, *([control[0]] if control else [])], ("-", "--"), strict=False):
            means = [row["mean"] for row in rows if row["decoding"] == decoding]
            middle, low, high = (
                sum(math.nan if value[bound] is None else value[bound] for value in means) / len(means)
                for bound in ("estimate", "low", "high")
            )
            axes.axhline(middle, color=COLOURS["sft"], linewidth=1.3, linestyle=line, label=f"SFT, {decoding}{suffix}")
            if math.isfinite(low) and math.isfinite(high):
                axes.axhspan(low, high, color=COLOURS["sft"], alpha=0.13, linewidth=0)
