"""Report the error of the gradient: sentences, tables and a figure."""

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
    words: str
    heads: list[str]
    rows: list[list[str]]


def write_theory(theory: "Theory", folder: Path) -> None:
    """Write to the folder `theory.json`, `report.html`, `theory.md` and the figure (svg, png)."""
    (folder / FILE).write_text(json.dumps(asdict(theory), indent=1))
    save(figure(theory), folder)
    found = tables(theory)
    page = render(
        Path(__file__).parent / "report.html.jinja",
        headline=headline(theory),
        sentences=sentences(theory),
        figure=inline(figure(theory), "theory", "Error of the gradient against negatives"),
        tables=found,
        folder=folder,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    parts = [f"# {headline(theory)}\n", *(f"{sentence}\n" for sentence in sentences(theory)), "![](figure.png)\n"]
    for table in found:
        parts += [f"## {table.title}\n", f"{table.words}\n", markdown(table.heads, table.rows)]
    (folder / "theory.md").write_text("\n".join(parts), encoding="utf-8")


def print_theory(theory: "Theory", folder: Path) -> None:
    """Prints the sentences, the tables and the paths to stdout."""
    say("")
    say(headline(theory), "bold")
    for sentence in sentences(theory):
        say(sentence)
    for table in tables(theory):
        say("")
        say(table.title, "bold")
        shown = columns(*table.heads, left=1)
        for row in table.rows:
            shown.add_row(*row)
        show(shown)
    say("")
    for name in ("report.html", "theory.md", "figure.png"):
        say(f"{name.split('.')[0]:<8} {text.place(folder / name)}", wrap=False)


def headline(theory: "Theory") -> str:
    share = theory.model["all"]["negatives_share"][0]
    return f"More negatives can take away {text.percent(share, 0)} of the gradient's squared error, and no more"


def sentences(theory: "Theory") -> list[str]:
    """Describe the diminishing returns of K in sentences."""
    model, bandit = theory.model, theory.bandit
    terms = model["all"]
    first, last = (str(k(map(int, terms["worth"]))) for k in (min, max))
    said = [
        f"On the fine-tuned model, over {model['prompts']} training prompts, a gradient from n prompts with K "
        f"negatives each has the squared error (A + B/K)/n with B/(A+B) = {_bounds(terms['negatives_share'])}. "
        f"K = {last} negatives are worth {_bounds(terms['worth'][last], 2)} times as many prompts with one; "
        f"no number of them is worth more than {text.number(terms['most'], 2)} times as many. With prompts of "
        f"{text.number(model['tokens'][0], 0)} tokens and responses of {text.number(model['tokens'][1], 0)}, a given "
        f"number of tokens gives the least error at K = {text.number(terms['best_negatives'], 1)}.",
        f"On the bandit, where this can be computed exactly, unlimited negatives make of one target "
        f"{text.number(bandit['most_balanced'], 2)} balanced pairs, and no more. Negatives that are as good as the "
        f"target add an error that neither K nor n makes smaller: "
        f"{text.number(bandit['bias'][0]['squared'])} of the true gradient's squared length without a filter, "
        f"{text.number(bandit['bias'][1]['squared'])} where a filter takes half of them away.",
    ]
    needed = {k: _count(n) for k, n in terms["prompts_needed"].items()}
    said.append(
        f"An estimate is no longer mostly noise from {needed[first]} prompts on with K = {first}, and from "
        f"{needed[last]} on with K = {last}."
        if terms["squared"] > 0
        else f"Over these {model['prompts']} prompts the true gradient cannot be told apart from zero."
    )
    if rows := {row["negatives"]: row for row in model.get("directions", [])}:
        slopes = [f"{name} {_bounds(rows[name]['slope'])}" for name in (ALL, KEPT, WORSE, NONE) if rows[name]["slope"]]
        said.append(
            "What a step gains along the direction in which the verifier's score grows fastest, by its negatives: "
            f"{'; '.join(slopes) or 'drowned in noise'}."
        )
    return said


def tables(theory: "Theory") -> list[Table]:
    model = theory.model
    found = []
    for key, title in (("all", "All responses as negatives"), ("filtered", "The filter's draw as negatives")):
        if key in model:
            terms = model[key]
            rows = [[k, _bounds(terms["worth"][k], 2), _count(terms["prompts_needed"][k])] for k in terms["worth"]]
            words = (
                f"B/(A+B) = {_bounds(terms['negatives_share'])}; at most {text.number(terms['most'], 2)} times the "
                f"prompts; least error per token at K = {text.number(terms['best_negatives'], 1)}. "
                "Intervals by the jackknife over prompts."
            )
            heads = ["K", "worth prompts with K=1, times", "prompts for an error of the gradient's length"]
            found.append(Table(title, words, heads, rows))
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
        words = (
            "The mean step's component along the gradient of the expected score over the policy's own samples, freed "
            "of each prompt's own noise. A false negative scores as high as the target."
        )
        heads = ["negatives", "prompts", "slope towards higher scores", "false negatives"]
        found.append(Table("Where the gradient points", words, heads, rows))
    found.append(_bandit(theory.bandit))
    return found


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
    words = (
        f"Exact parts: of the target {parts['target']:.3g}, of the negative {parts['negative']:.3g}, of both "
        f"{parts['both']:.3g}, ||G||² = {parts['squared']:.3g}. Simulated: mean ± standard error."
    )
    return Table("Bandit", words, ["targets × negatives", "formula", "simulated"], rows)


@styled()
def figure(theory: "Theory") -> Figure:
    """Error against negatives on log axes: the bandit, and the model."""
    drawn = Figure(figsize=(8.2, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
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
    return drawn


def _lines(axes: Axes, curves: Sequence[Mapping[str, float]], of: str, points: str, word: str) -> None:
    ks = sorted({int(row["negatives"]) for row in curves})
    for at, n in enumerate(sorted({int(row[of]) for row in curves})):
        rows = sorted((row for row in curves if row[of] == n), key=lambda row: row["negatives"])
        colour = SERIES[at % len(SERIES)]
        shown = [(row["negatives"], row["formula"], row[points]) for row in rows]
        x, line, dots = zip(*shown, strict=True)
        axes.plot(x, line, color=colour, linewidth=1.4, label=f"{n} {word}{'s' if n > 1 else ''}")
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
    """Return the number rounded up; a dash if no number is enough."""
    return text.count(float(math.ceil(prompts))) if math.isfinite(prompts) else text.NONE


def _bounds(value: Sequence[float], digits: int = 3) -> str:
    """An estimate with its interval, [estimate, low, high]."""
    estimate, low, high = (text.number(v, digits) if math.isfinite(v) else text.NONE for v in value)
    return f"{estimate} [{low}, {high}]"
