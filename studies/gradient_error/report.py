"""Report the gradient's error in sentences, tables, and a figure."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcontrast.report import text
from selfcontrast.report.page import render
from selfcontrast.report.style import COLOURS, inline, save, styled
from selfcontrast.report.sweep_tables import markdown
from selfcontrast.report.terminal import columns, say, show
from studies.gradient_error.measure import ALL, KEPT, NONE, WORSE

if TYPE_CHECKING:
    from studies.gradient_error.experiment import Theory

FILE = "theory.json"
SERIES = [COLOURS[name] for name in ("policy", "negative", "target", "muted", "ink")]


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    title: str
    caption: str
    heads: list[str]
    rows: list[list[str]]


def write_theory(theory: "Theory", folder: Path) -> None:
    """Write `theory.json`, `report.html`, `theory.md` and the figure (svg, png) to the folder."""
    (folder / FILE).write_text(json.dumps(asdict(theory), indent=1))
    save(figure(theory), folder)
    all_tables = tables(theory)
    page = render(
        Path(__file__).parent / "report.html.jinja",
        headline=headline(theory),
        sentences=sentences(theory),
        figure=inline(figure(theory), "theory", "Error of the gradient against negatives"),
        tables=all_tables,
        folder=folder,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    parts = [f"# {headline(theory)}\n", *(f"{sentence}\n" for sentence in sentences(theory)), "![](figure.png)\n"]
    for table in all_tables:
        parts += [f"## {table.title}\n", f"{table.caption}\n", markdown(table.heads, table.rows)]
    (folder / "theory.md").write_text("\n".join(parts), encoding="utf-8")


def print_theory(theory: "Theory", folder: Path) -> None:
    """Print sentences, tables and paths to stdout."""
    say("")
    say(headline(theory), "bold")
    for sentence in sentences(theory):
        say(sentence)
    for table in tables(theory):
        say("")
        say(table.title, "bold")
        printed = columns(*table.heads, left=1)
        for row in table.rows:
            printed.add_row(*row)
        show(printed)
    say("")
    for name in ("report.html", "theory.md", "figure.png"):
        say(f"{name.split('.')[0]:<8} {text.display_path(folder / name)}", wrap=False)


def headline(theory: "Theory") -> str:
    fraction = theory.model["all"]["negatives_share"][0]
    return f"More negatives can remove at most {text.percent(fraction, 0)} of the gradient's squared error"


def sentences(theory: "Theory") -> list[str]:
    """Describe the diminishing returns of K in sentences."""
    model, bandit = theory.model, theory.bandit
    numbers = model["all"]
    first, last = (str(k(map(int, numbers["worth"]))) for k in (min, max))
    sentences = [
        f"Fine-tuned model, over {model['prompts']} training prompts: a gradient from n prompts with K negatives each "
        f"has the squared error (A + B/K)/n with B/(A+B) = {_bounds(numbers['negatives_share'])}. A prompt with "
        f"K = {last} negatives is worth {_bounds(numbers['worth'][last], 2)} prompts with one negative. The limit for "
        f"any K is {text.number(numbers['most'], 2)} prompts. With prompts of {text.number(model['tokens'][0], 0)} "
        f"tokens and responses of {text.number(model['tokens'][1], 0)}, "
        f"K = {text.number(numbers['best_negatives'], 1)} gives the least error per token.",
        f"Bandit, computed exactly: one target with unlimited negatives is worth "
        f"{text.number(bandit['most_balanced'], 2)} independent pairs. Negatives as good as the target add an error "
        f"that neither K nor n reduces: {text.number(bandit['bias'][0]['squared'])} of the true gradient's squared "
        f"length without a filter, {text.number(bandit['bias'][1]['squared'])} if a filter removes half of them.",
    ]
    needed = {k: _count(n) for k, n in numbers["prompts_needed"].items()}
    sentences.append(
        f"An estimate is mostly noise with fewer than {needed[first]} prompts at K = {first}, or {needed[last]} "
        f"prompts at K = {last}."
        if numbers["squared"] > 0
        else f"Over these {model['prompts']} prompts the true gradient cannot be told apart from zero."
    )
    if rows := {row["negatives"]: row for row in model.get("directions", [])}:
        slopes = [f"{name} {_bounds(rows[name]['slope'])}" for name in (ALL, KEPT, WORSE, NONE) if rows[name]["slope"]]
        sentences.append(
            "A step's component along the direction in which the verifier's score grows fastest, by choice of "
            f"negatives: {'; '.join(slopes) or 'too noisy to estimate'}."
        )
    return sentences


def tables(theory: "Theory") -> list[Table]:
    model = theory.model
    result = []
    for key, title in (("all", "All responses as negatives"), ("filtered", "The filter's draw as negatives")):
        if key in model:
            numbers = model[key]
            needed = numbers["prompts_needed"]
            rows = [[k, _bounds(value, 2), _count(needed[k])] for k, value in numbers["worth"].items()]
            caption = (
                f"B/(A+B) = {_bounds(numbers['negatives_share'])}; worth at most {text.number(numbers['most'], 2)} "
                f"prompts; least error per token at K = {text.number(numbers['best_negatives'], 1)}. "
                "Intervals: jackknife over prompts."
            )
            heads = ["K", "worth in prompts with K=1", "prompts at which the error equals the gradient's length"]
            result.append(Table(title, caption, heads, rows))
    if "directions" in model:
        rows = [
            [
                row["negatives"],
                str(row["prompts"]),
                _bounds(row["slope"]) if row["slope"] else text.NONE,
                text.percent(row["false_negatives"]),
            ]
            for row in model["directions"]
        ]
        caption = (
            "The mean step's component along the gradient of the expected score over the policy's samples, without the "
            "bias from each prompt's own noise. A false negative scores at least as high as the target."
        )
        heads = ["negatives", "prompts", "slope towards higher scores", "false negatives"]
        result.append(Table("Direction of the gradient", caption, heads, rows))
    result.append(_bandit(theory.bandit))
    return result


def _bandit(bandit: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"{row['positives']} × {row['negatives']}",
            text.number(row["formula"], 4),
            f"{text.number(row['simulated'], 4)} ± {text.number(row['error'], 4)}",
        ]
        for row in bandit["curves"]
    ]
    parts = bandit["parts"]
    caption = (
        f"Exact parts: target {parts['target']:.3g}, negative {parts['negative']:.3g}, "
        f"interaction {parts['both']:.3g}, ||G||² = {parts['squared']:.3g}. Simulated: mean ± standard error."
    )
    return Table("Bandit", caption, ["targets × negatives", "formula", "simulated"], rows)


@styled()
def figure(theory: "Theory") -> Figure:
    """Plot the error against negatives on log axes, for the bandit and the model."""
    plot = Figure(figsize=(8.2, 3.6), layout="constrained")
    left, right = plot.subplots(1, 2)
    _lines(left, theory.bandit["curves"], "positives", "simulated", "target")
    left.set_title("Bandit, one prompt")
    _lines(right, theory.model["curves"], "prompts", "measured", "prompt")
    right.set_title("Fine-tuned model")
    left.set_ylabel("squared error / ||G||²")
    right.set_ylabel("squared error")
    if theory.model["all"]["squared"] > 0:
        right.axhline(
            theory.model["all"]["squared"], color=COLOURS["sft"], linestyle="--", linewidth=1.2, label="||G||²"
        )
    right.legend(fontsize=8)
    return plot


def _lines(axes: Axes, curves: Sequence[Mapping[str, float]], group_by: str, points: str, unit: str) -> None:
    ks = sorted({int(row["negatives"]) for row in curves})
    for index, n in enumerate(sorted({int(row[group_by]) for row in curves})):
        rows = sorted((row for row in curves if row[group_by] == n), key=lambda row: row["negatives"])
        colour = SERIES[index % len(SERIES)]
        values = [(row["negatives"], row["formula"], row[points]) for row in rows]
        x, line, dots = zip(*values, strict=True)
        axes.plot(x, line, color=colour, linewidth=1.4, label=f"{n} {unit}{'s' if n > 1 else ''}")
        axes.plot(x, dots, "o", color=colour, markersize=5, markeredgewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("negatives")
    axes.legend(fontsize=8)


def _count(prompts: float) -> str:
    """Return the number rounded up, or a dash if it is infinite."""
    return text.count(float(math.ceil(prompts))) if math.isfinite(prompts) else text.NONE


def _bounds(value: Sequence[float], digits: int = 3) -> str:
    """Return [estimate, low, high] as an estimate with its interval."""
    estimate, low, high = (text.number(v, digits) if math.isfinite(v) else text.NONE for v in value)
    return f"{estimate} [{low}, {high}]"
