"""A sweep's figure: the gain over SFT against K, or a ranking if there are many variants."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcontrast.report.figures import axis_label
from selfcontrast.report.style import COLOURS, MARKERS, SERIES, dot, legend_name, styled
from selfcontrast.report.sweep import Point, Sweep, comparable, control_of, mean, point_name
from selfcontrast.report.text import number

MOST_CURVES = 10  # variants that a figure against K can tell apart; more are ranked
MOST_RANKED = 30  # rows of a ranking


def figure(sweep: Sweep) -> Figure:
    """Draw the gain over SFT against K, or a ranking."""
    return ranking(sweep) if is_ranked(sweep) else against_k(sweep)


def is_ranked(sweep: Sweep) -> bool:
    """Return whether the figure is a ranking: there are more than `MOST_CURVES` variants, or no policy to compare."""
    return len(sweep.variants) > MOST_CURVES or not any(point.measured("difference") for point in sweep.points)


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
    """Draw the paired difference from SFT, with its interval, against K on a log2 axis.

    If other variants have several K, a variant with a single K is drawn as a baseline: a dotted line.
    """
    canvas = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = canvas.subplots()
    axes.axhline(0, color=COLOURS["sft"], linewidth=1.3, label=_sft_label(sweep))
    points = {variant: [p for p in sweep.of(variant) if p.measured("difference")] for variant in sweep.variants}
    trained = [variant for variant in sweep.variants if points[variant]]
    curves = [variant for variant in trained if len(points[variant]) > 1] or trained
    for index, variant in enumerate(trained):
        colour, marker = SERIES[index % len(SERIES)], MARKERS[index // len(SERIES)]
        shift = 2 ** (0.1 * (index - (len(trained) - 1) / 2))  # so that intervals do not hide each other
        _series(axes, points[variant], variant, colour, marker, shift, is_baseline=variant not in curves)
    _control(axes, sweep)
    ks = sorted({point.k for variant in trained for point in points[variant]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ks[0] / 1.25, ks[-1] * 1.25)
    axes.set_xlabel("K: negatives per prompt")
    axes.set_ylabel(f"difference from SFT in {axis_label(sweep.jobs[0].result.comparison['measure'])}")
    axes.yaxis.set_major_formatter("{x:+.3f}")
    axes.grid(axis="x", visible=False)
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=8)
    return canvas


def _sft_label(sweep: Sweep) -> str:
    """Name the line at zero. Variants that are trained on other data have SFT models of their own."""
    if len(sweep.baselines) > 1:
        return "each variant's SFT model"
    return f"SFT, {sweep.decoding} ({number(mean(sweep.jobs, base=True))})"


def _series(
    axes: Axes, points: list[Point], variant: str, colour: str, marker: str, shift: float, is_baseline: bool
) -> None:
    method = str(points[0].jobs[0].result.config.get("label", "Self-Contrast"))
    label = variant if variant.startswith(method) else method + (f", {variant}" if variant else "")
    look: Any = {"color": colour, "marker": marker, "markeredgewidth": 0}
    same_seeds, _ = comparable(points)  # so that other seeds do not make the line rise or fall
    levels = [_difference(point) for point in same_seeds]
    ks = [point.k * shift for point in points]
    if is_baseline:
        axes.axhline(levels[0], color=colour, linewidth=1.0, linestyle=":")
    line: Any = {"linewidth": 1.2, "linestyle": ":" if is_baseline else "-", "markersize": 6.5}
    axes.plot(ks, levels, label=legend_name(label), **line, **look)
    for k, point in zip(ks, points, strict=True):
        dot(axes, point.measured("difference") or {}, k, colour, vertical=True)
        if len(point.jobs) > 1:
            seeds = [job.row["difference"]["estimate"] for job in point.jobs]
            axes.plot([k] * len(seeds), seeds, linestyle="", alpha=0.45, markersize=4, **look)


def _difference(point: Point) -> float:
    return float((point.measured("difference") or {})["estimate"])


def _control(axes: Axes, sweep: Sweep) -> None:
    """Draw SFT at its best sharper decoding, as a line if it is near the policies, otherwise as a note."""
    control = control_of(sweep.jobs)
    if control is None or len(sweep.baselines) > 1:
        return
    decoding, score = control
    gain = score - mean(sweep.jobs, base=True)
    low, high = axes.get_ylim()
    if low - (high - low) / 2 <= gain <= high + (high - low) / 2:
        label = f"SFT, {decoding} ({number(score)})"
        axes.axhline(gain, color=COLOURS["sft"], linewidth=1.3, linestyle="--", label=label)
        return
    axes.set_ylim(low, high)
    axes.set_title(f"outside: SFT, {decoding} {gain:+.3f}", loc="right", fontsize=8, color=COLOURS["muted"])
