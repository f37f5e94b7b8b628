"""A run's benchmarks: tables of scores, and a radar figure by category."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from selfcontrast.report.figures import colour_of
from selfcontrast.report.style import COLOURS, inline, styled
from selfcontrast.report.text import NONE, interval, number, percent, percent_interval

if TYPE_CHECKING:
    from selfcontrast.results import Evaluated, Result

CATEGORY = "category "
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class BenchmarkView:
    """A benchmark as the page shows it.

    Attributes:
        rows: each measure with its cells, one per system.
        summary: sentences about the judgments and about contamination; "" if there are none.
        radar: figure of mean grades by category; None without grades by category.
        judgments: some judgments of each system.
    """

    name: str
    systems: list[str]
    rows: list[tuple[str, list[str]]]
    summary: str
    radar: Markup | None
    judgments: Lines


def views(result: "Result | Evaluated") -> list[BenchmarkView]:
    """Return all benchmarks of a run, ready for the page."""
    return [_view(name, benchmark) for name, benchmark in result.benchmarks.items()]


def published(result: "Result") -> list[list[str]]:
    """Return one row per published figure: system, measure, source and page, published number, measured number."""
    rows = []
    for comparison in result.published:
        figure, value, kind = comparison["published"], comparison["measured"], comparison["kind"]
        in_percent = kind == "share" or (value is None and "rate" in figure["what"])
        printed = f"{figure['figure']:g}{'%' if in_percent else ''}"
        measured = cell({"kind": kind, "value": value, "note": comparison.get("note")}) if value else NONE
        system = figure["system"] + (f", K = {figure['negatives']}" if figure["negatives"] is not None else "")
        source = f"{figure['source']}, p. {figure['page']}"
        rows.append([system, f"{figure['benchmark']}: {figure['what']}", source, printed, measured])
    return rows


def cell(line: dict[str, Any]) -> str:
    """Format a line's number, interval and note, depending on its kind: "53.1% [–] (weak: ...)"."""
    if line["kind"] == "share":
        value = percent_interval(line["value"])
    else:
        value = interval(line["value"], signed=line["kind"] == "difference")
    note = line.get("note")  # results of older versions have none
    if line["value"]["estimate"] is None or not math.isfinite(line["value"]["estimate"]):
        value = NONE
    return f"{value} ({note})" if note else value


@styled()
def radar(lines: Lines) -> Figure | None:
    """Draw mean grades by category. Return None for fewer than three categories, or if answers were not graded."""
    by_system: dict[str, dict[str, float]] = {}
    for line in lines:
        if line["what"].startswith(CATEGORY) and line["kind"] == "rating":
            by_system.setdefault(line["system"], {})[line["what"].removeprefix(CATEGORY)] = line["value"]["estimate"]
    names = list(dict.fromkeys(name for values in by_system.values() for name in values))
    if len(names) < 3:
        return None
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes: Any = figure.subplots(subplot_kw={"projection": "polar"})
    for system, values in by_system.items():
        heights = [values.get(name, np.nan) for name in names]
        closed = [*angles, angles[0]], [*heights, heights[0]]
        axes.plot(*closed, color=colour_of(system), marker="o", markersize=3, label=system)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, names)
    axes.set_ylim(0, 10)
    axes.set_yticks([2, 4, 6, 8, 10])
    axes.spines["polar"].set_color(COLOURS["rule"])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(by_system))
    return figure


def _view(name: str, benchmark: dict[str, Any]) -> BenchmarkView:
    lines: Lines = benchmark["lines"]
    systems = list(dict.fromkeys(line["system"] for line in lines))
    cells = {(line["what"], line["system"]): cell(line) for line in lines}
    measures = sorted(dict.fromkeys(line["what"] for line in lines), key=lambda what: what.startswith(CATEGORY))
    figure = radar(lines)
    return BenchmarkView(
        name,
        systems,
        [(what, [cells.get((what, system), NONE) for system in systems]) for what in measures],
        " ".join(
            filter(None, (_judgments_sentence(benchmark["facts"]), _overlap_sentence(benchmark.get("contamination"))))
        ),
        inline(figure, f"radar_{name}", "Mean grades by category") if figure else None,
        [{**row, "verdict": _verdict(row)} for row in benchmark["shown"]],
    )


def _verdict(row: dict[str, Any]) -> str:
    """Return the judgment of the system's answer. The order in which the judge saw the answers does not matter."""
    value = row.get("rating", row.get("outcome"))
    if value is None:
        return str(row["status"])
    if "rating" in row:
        return f"{value:g} of 10"
    return {0.0: "worse", 0.5: "neither is better", 1.0: "better"}.get(value, f"better at {percent(value)}")


def _overlap_sentence(contamination: dict[str, int] | None) -> str:
    """Say how many of a benchmark's prompts resemble a training prompt; "" if this was not checked."""
    if not contamination:
        return ""
    return f"{contamination['flagged']:,} of the {contamination['prompts']:,} prompts resemble a training prompt."


def _judgments_sentence(facts: dict[str, dict[str, Any]]) -> str:
    """Say how many judgments are usable, what they cost, and how far a panel's judges disagree."""
    systems = [f for f in facts.values() if f.get("judgments")]
    if not systems:
        return ""
    count = sum(f["judgments"] for f in systems)
    usable = round(sum(f["judgments"] * f["coverage"] for f in systems))
    costs = [f["cost"] for f in systems if f["cost"] is not None]
    cost = f" They cost {sum(costs):.2f}." if costs else ""
    panel = _panel_sentence(systems)
    return f"{usable:,} of {count:,} judgments could be used ({percent(usable / count)}).{cost}{panel}"


def _panel_sentence(systems: Sequence[dict[str, Any]]) -> str:
    """Say how far the judges of a panel differ, over all systems' judgments; "" for a single judge."""
    panels = [f for f in systems if "judges" in f]
    if not panels:
        return ""
    usable = [f["judgments"] * f["coverage"] for f in panels]
    apart, disagree = (
        np.average([f[name] for f in panels], weights=usable) for name in ("judges_apart", "judges_disagree")
    )
    return (
        f" Verdicts are the mean of {panels[0]['judges']} judges, who differ by {number(apart, 2)} on average and "
        f"disagree in {percent(disagree)} of the judgments."
    )
