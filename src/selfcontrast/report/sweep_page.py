"""A sweep's files: score against K as a figure, a page that needs no network, and a table of numbers."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcontrast.report import sweep_kl, text
from selfcontrast.report.figures import axis_label
from selfcontrast.report.page import render
from selfcontrast.report.style import COLOURS, MARKERS, SERIES, dot, inline, legend_name, save, styled
from selfcontrast.report.sweep import Point, Sweep, best, comparable, control_of, mean
from selfcontrast.report.sweep_numbers import by_job, by_point, frame, numbers
from selfcontrast.report.sweep_prompts import different_prompts
from selfcontrast.report.sweep_tables import latex, markdown
from selfcontrast.report.verdict import BASELINE

MOST_NAMED = 10  # variants in the figure's legend; of more the best alone
OUTCOMES = {
    "better": "Clear gain over",
    "worse": "Clear loss against",
    "level": "No significant difference from",
}


def write_sweep(sweep: Sweep) -> None:
    """Writes to the sweep's folder `report.html`, the figure (svg, png), and the table (csv, md, tex)."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    save(figure(sweep), sweep.folder)
    frame(sweep).to_csv(sweep.folder / "results.csv", index=False)
    jobs = by_job(sweep)
    points = by_point(sweep) if sweep.repeated else None
    compared = sweep_kl.equal_kl(sweep)
    tables = [table for table in (points, jobs) if table]
    if compared:
        tables.append((compared.heads, compared.rows))
    against_kl = sweep_kl.figure(sweep)
    (sweep.folder / "results.md").write_text("\n".join(markdown(*table) for table in tables), encoding="utf-8")
    (sweep.folder / "results.tex").write_text("\n".join(latex(*table) for table in tables), encoding="utf-8")
    page = render(
        "sweep.html.jinja",
        sweep=sweep,
        again=again(sweep),
        headline=headline(sweep),
        sentence=sentence(sweep),
        figure=inline(figure(sweep), "sweep", f"{sweep.measure} against K"),
        figure_kl=inline(against_kl, "kl", f"{sweep.measure} against KL") if against_kl else None,
        compared=compared,
        confidence=sweep.jobs[0].row["mean"]["confidence"],
        points=points,
        different_prompts=different_prompts(sweep),
        jobs=jobs,
    )
    (sweep.folder / "report.html").write_text(page, encoding="utf-8")


def again(sweep: Sweep) -> str:
    """The arguments that make the same report."""
    own = [text.place(source) for source in sweep.sources]
    if list(sweep.sources) != [sweep.folder]:
        own += ["--to", text.place(sweep.folder)]
    return shlex.join(own)


def headline(sweep: Sweep) -> str:
    """The finding's size in a few words: first and last K of one variant beside its own SFT, no trend claimed.

    All three are over the seeds that every K of the variant has.
    """
    own = sweep.of(sweep.variants[0])
    points, seeds = comparable(own)
    ends = {point.k: f"{text.number(mean(point.jobs))} at K={point.k}" for point in (points[0], points[-1])}
    where = f" ({sweep.variants[0]})" if len(sweep.variants) > 1 else ""
    measure = f"{sweep.measure.capitalize()}{where}"
    if not seeds:
        told = [f"{ends[point.k]} (seed {_listed(point.seeds)})" for point in (own[0], own[-1])]
        return f"{measure}: {', '.join(told)}: other seeds, not to be compared"
    sft = text.number(mean([job for point in points for job in point.jobs], base=True))
    on = f" (seed {_listed(seeds)})" if len(seeds) < len({seed for point in own for seed in point.seeds}) else ""
    return f"{measure}: {', '.join(ends.values())}; SFT {sft}{on}"


def sentence(sweep: Sweep) -> str:
    """At which K the policy differs clearly from the fine-tuned model, and what the best K has."""
    parts = []
    for outcome, words in OUTCOMES.items():
        found = [(point, sum(job.outcome == outcome for job in point.jobs)) for point in sweep.points]
        named = [_name(sweep, point) + _share(sweep, point, n) for point, n in found if n]
        if named:
            parts.append(f"{words} SFT at {', '.join(named)}.")
    highest = best(sweep)
    score, difference, *_ = numbers(highest)
    parts.append(f"Highest: {_name(sweep, highest)} with {score}, {difference} from SFT.")
    if control := control_of(highest.jobs):
        over = " on average over its seeds" if len(highest.seeds) > 1 else ""
        parts.append(f"SFT's {control[0]} decoding alone gives {text.number(control[1])}{over}.")
    return " ".join([*parts, unequal_seeds(sweep)]).strip()


def unequal_seeds(sweep: Sweep) -> str:
    """Say which points lack seeds that others have; "" where none does."""
    every = set(sweep.seeds)
    lacking = [
        f"{_name(sweep, point)} lacks seed {_listed(missing)}"
        for point in sweep.points
        if (missing := sorted(every - set(point.seeds)))
    ]
    if not lacking:
        return ""
    _, shared = comparable(sweep.points)
    on = f"compared on seed {_listed(shared)}, which all have" if shared else "no seed is in all, so compare none"
    return f"Points have other seeds ({on}): {'; '.join(lacking)}."


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


@styled()
def figure(sweep: Sweep) -> Figure:
    """Score against K on a log2 axis, over the level of the fine-tuned model and of its sharper decoding.

    Beside variants of several K, one with a single K is a baseline: a dotted line.
    """
    drawn = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = drawn.subplots()
    _levels(axes, sweep)
    curves = [variant for variant in sweep.variants if len(sweep.of(variant)) > 1] or sweep.variants
    for at, variant in enumerate(sweep.variants):
        if len(sweep.variants) <= MOST_NAMED:
            colour, marker = SERIES[at % len(SERIES)], MARKERS[at // len(SERIES)]
            if variant in curves:
                side_by_side = 2 ** (0.1 * (curves.index(variant) - (len(curves) - 1) / 2))
                _series(axes, sweep, variant, colour, marker, side_by_side)
            else:
                _baseline(axes, sweep.of(variant)[0], colour, marker)
        elif variant != best(sweep).variant:  # as a search leaves them: the table has their names
            _series(axes, sweep, variant, COLOURS["muted"], named=False)
    if len(sweep.variants) > MOST_NAMED:
        _series(axes, sweep, best(sweep).variant, SERIES[0])
    ks = sorted({job.result.negatives for job in sweep.jobs})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ks[0] / 1.25, ks[-1] * 1.25)
    axes.set_xlabel("K: negatives per prompt")
    axes.set_ylabel(axis_label(sweep.jobs[0].result.comparison["measure"]))
    axes.grid(axis="x", visible=False)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=8)
    return drawn


def _baseline(axes: Axes, point: Point, colour: str, marker: str) -> None:
    level = mean(point.jobs)
    axes.axhline(level, color=colour, linewidth=1.0, linestyle=":")
    label = legend_name(point.variant)
    axes.plot([point.k], [level], color=colour, marker=marker, linestyle=":", markersize=5, label=label)


def _series(
    axes: Axes,
    sweep: Sweep,
    variant: str,
    colour: str,
    marker: str = "o",
    side_by_side: float = 1.0,
    named: bool = True,
) -> None:
    points = sweep.of(variant)
    where = [point.k * side_by_side for point in points]
    own = str(points[0].jobs[0].result.config.get("label", "Self-Contrast"))
    label = variant if variant.startswith(own) else own + (f", {variant}" if variant else "")
    look: Any = {"color": colour, "marker": marker, "markeredgewidth": 0}
    compared, _ = comparable(points)  # the line rises or falls by the same seeds
    axes.plot(
        where,
        [mean(point.jobs) for point in compared],
        linewidth=1.2,
        label=legend_name(label) if named else None,
        markersize=6.5,
        **look,
    )
    for at, point in zip(where, points, strict=True):
        if len(point.jobs) == 1:
            dot(axes, point.jobs[0].row["mean"], at, colour, vertical=True)
        else:
            seeds = [job.row["mean"]["estimate"] for job in point.jobs]
            axes.plot([at] * len(seeds), seeds, linestyle="", alpha=0.45, markersize=4, **look)


def _levels(axes: Axes, sweep: Sweep) -> None:
    """Draw SFT as it is and at its best sharper decoding: means over jobs of its estimates and bounds.

    Variants that begin with another fine-tuned model, such as those of other data, have lines of their own.
    """
    for variants in sweep.baselines:
        jobs = [job for job in sweep.jobs if job.variant in variants]
        rows = [row for job in jobs for row in job.result.comparison["rows"] if row["system"] == BASELINE]
        control = control_of(jobs)
        of = f" ({variants[0]})" if len(sweep.baselines) > 1 and len(sweep.variants) <= MOST_NAMED else ""
        for decoding, line in zip([sweep.decoding, *([control[0]] if control else [])], ("-", "--"), strict=False):
            own = [row["mean"] for row in rows if row["decoding"] == decoding]
            middle, low, high = (
                sum(math.nan if value[bound] is None else value[bound] for value in own) / len(own)
                for bound in ("estimate", "low", "high")
            )
            axes.axhline(middle, color=COLOURS["sft"], linewidth=1.3, linestyle=line, label=f"SFT, {decoding}{of}")
            if math.isfinite(low) and math.isfinite(high):
                axes.axhspan(low, high, color=COLOURS["sft"], alpha=0.13, linewidth=0)


def _name(sweep: Sweep, point: Point) -> str:
    """K, with the variant where there are several."""
    variant = f" ({point.variant})" if len(sweep.variants) > 1 else ""
    return f"K={point.k}{variant}"


def _share(sweep: Sweep, point: Point, count: int) -> str:
    return f" ({count} of {len(point.jobs)} seeds)" if len(sweep.seeds) > 1 else ""
