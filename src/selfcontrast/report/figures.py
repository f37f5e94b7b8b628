"""The figures of one run, each drawn from its `Result`."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfcontrast.report.style import COLOURS, dot, legend_name, styled
from selfcontrast.report.text import number, percent
from selfcontrast.report.training import Records, ends, mean_of, ranks
from selfcontrast.report.verdict import BASELINE, PROXY

if TYPE_CHECKING:
    from selfcontrast.evaluation.compare import Bounds
    from selfcontrast.results import Evaluated, Result

POINTS = 300  # maximum points per curve; a page is not wide enough for more


def axis_label(measure: str) -> str:
    return "mean score (0 to 1)" if measure == "score" else PROXY


def colour_of(system: str) -> str:
    return COLOURS["sft" if system == BASELINE else "policy"]


@styled()
def systems(result: "Result | Evaluated", title: str = "") -> Figure:
    """Draw every system's mean with its interval, by decoding. Give a `title` for use outside the page."""
    rows = result.comparison["rows"]
    decodings = list(dict.fromkeys(row["decoding"] for row in rows))
    names = list(dict.fromkeys(row["system"] for row in rows))
    figure = Figure(figsize=(7.2, 0.9 + 0.66 * len(decodings) + (0.35 if title else 0)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        y = decodings.index(row["decoding"]) + _offset(names, row["system"], 0.34)
        first = row["decoding"] == decodings[0]
        dot(axes, row["mean"], y, colour_of(row["system"]), label=legend_name(row["system"]) if first else None)
        _annotate_right(axes, row["mean"], y, number(row["mean"]["estimate"]))
    _categorical(axes, decodings)
    axes.set_xlabel(axis_label(result.comparison["measure"]))
    axes.margins(x=0.12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(names))
    if title:
        prompts, confidence = rows[0]["mean"]["clusters"], rows[0]["mean"]["confidence"]
        title = f"{title}: {prompts} prompts, {percent(confidence, 0)} intervals"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    return figure


@styled()
def categories(result: "Result | Evaluated") -> Figure | None:
    """Draw means by category at the first decoding; None if the data has no categories."""
    rows = result.comparison["categories"]
    if not rows:
        return None
    categories = list(dict.fromkeys(row["category"] for row in rows))
    names = list(dict.fromkeys(row["system"] for row in rows))
    figure = Figure(figsize=(7.2, 0.9 + 0.46 * len(categories)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        y = categories.index(row["category"]) + _offset(names, row["system"], 0.34)
        first = row["category"] == categories[0]
        dot(axes, row["mean"], y, colour_of(row["system"]), label=legend_name(row["system"]) if first else None)
    _categorical(axes, categories)
    axes.set_xlabel(axis_label(result.comparison["measure"]))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(names))
    return figure


@styled()
def fine_tuning(records: Records) -> Figure | None:
    """Draw loss and gradient norm of supervised fine-tuning."""
    if not records:
        return None
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curve(left, records, "loss", COLOURS["policy"], "training")
    _curve(left, records, "val_loss", COLOURS["negative"], "validation", marker="o")
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.set_title("loss (nats per token, log scale)")
    left.legend()
    _curve(right, records, "grad_norm", COLOURS["muted"])
    right.set_title("gradient norm, before clipping")
    for axes in (left, right):
        axes.set_xlabel("step")
    return figure


@styled()
def aligning(records: Records) -> Figure | None:
    """Draw six panels of metrics over the steps of preference training; None if nothing was trained on preferences."""
    if mean_of(records, "margin") is None:
        return None
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    for index, (name, title, colour) in enumerate(
        [
            ("loss", "loss", "policy"),
            ("margin", "margin of rewards", "policy"),
            ("accuracy", "accuracy", "policy"),
            ("chosen_reward", "rewards", "policy"),
            ("chosen_log_prob_change", "log-prob. change of the target", "policy"),
            ("grad_norm", "gradient norm", "muted"),
        ]
    ):
        _curve(axes[index], records, name, COLOURS[colour], "target" if name == "chosen_reward" else None)
        axes[index].set_title(title)
    _curve(axes[3], records, "rejected_reward", COLOURS["negative"], "negatives")
    axes[3].legend()
    for panel in axes[[1, 3, 4]]:
        panel.axhline(0, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
    axes[2].axhline(0.5, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
    for panel in axes[3:]:
        panel.set_xlabel("step")
    return figure


@styled()
def by_rank(records: Records) -> Figure | None:
    """Draw accuracy and margin by the negative's rank of similarity to the target; None for one negative."""
    count = ranks(records)
    if count < 2:
        return None
    figure = Figure(figsize=(7.2, 2.3), layout="constrained")
    positions = list(range(1, count + 1))
    titles = {"accuracy": "accuracy", "margin": "margin of rewards"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        series = zip(("first", "last"), ends(records), ("muted", "policy"), strict=True)
        for part, tenth, colour in series:
            values = [mean_of(tenth, f"{name}_rank_{rank}") for rank in positions]
            heights = [np.nan if value is None else value for value in values]
            label = f"{part} tenth of the steps" if name == "accuracy" else None
            axes.plot(positions, heights, color=COLOURS[colour], marker="o", markersize=4, linewidth=1.4, label=label)
        axes.axhline(0.5 if name == "accuracy" else 0, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_title(title)
        axes.set_xlabel("negative, most similar first")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper right", ncols=2)
    return figure


@styled()
def similarities(result: "Result") -> Figure | None:
    """Draw histograms of candidates and negatives by similarity to their target, and the filter's cuts."""
    histogram = result.similarities
    if not any(histogram.get("candidates", [])):
        return None
    figure = Figure(figsize=(7.2, 2.5), layout="constrained")
    axes = figure.subplots()
    first = min(int(np.flatnonzero(histogram["candidates"])[0]), int(np.searchsorted(histogram["edges"], 0.0)))
    edges = histogram["edges"][first:]
    for name, colour, alpha, label in (
        ("candidates", "rule", 1.0, "distinct candidates"),
        ("negatives", "negative", 0.6, "drawn as negatives"),
    ):
        axes.stairs(histogram[name][first:], edges, fill=True, color=COLOURS[colour], alpha=alpha, label=label)
    label = "the cut (median; shade: 80% of prompts)"
    for low, middle, high in filter(None, histogram["cuts"].values()):
        axes.axvspan(low, high, color=COLOURS["ink"], alpha=0.07, linewidth=0)
        axes.axvline(middle, color=COLOURS["ink"], linewidth=1.2, label=label)
        label = ""
    axes.set_xlabel("cosine similarity to the target's embedding")
    axes.set_ylabel("candidates")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def _offset(names: list[str], name: str, width: float) -> float:
    return width * (names.index(name) - (len(names) - 1) / 2)


def _categorical(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.spines["left"].set_visible(False)


def _annotate_right(axes: Axes, value: "Bounds", y: float, text: str) -> None:
    """Write a number to the right of its interval."""
    edge = np.nanmax([value["estimate"], value["high"] if value["high"] is not None else np.nan])
    axes.annotate(text, (edge, y), (5, 0), textcoords="offset points", va="center", fontsize=8, color=COLOURS["muted"])


def _curve(
    axes: Axes, records: Records, name: str, colour: str, label: str | None = None, marker: str | None = None
) -> None:
    """Draw one metric over steps. If there are many points, they are faint, and their moving mean is strong."""
    points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    if not points:
        return
    steps, values = np.array(points, dtype=float).T
    if marker or len(points) < 30:
        axes.plot(steps, values, color=colour, linewidth=1.6, label=label, marker=marker, markersize=4)
        return
    stride = -(-len(points) // POINTS)
    window = max(5, min(25, len(points) // 12))
    kernel = np.ones(window)
    smooth = np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
    axes.plot(steps[::stride], values[::stride], color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps[::stride], smooth[::stride], color=colour, linewidth=1.7, label=label)
