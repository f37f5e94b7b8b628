"""The style of figures, and their conversion for a page: to SVG with real text, in the colours of the page's theme."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcontrast.report.text import bounded

# The light theme's colours. On the page each becomes a CSS variable of the same name, which the dark theme redefines.
COLOURS = {
    "ink": "#1f2531",
    "muted": "#667085",
    "rule": "#d8dce5",
    "sft": "#8a7a5c",
    "policy": "#1b6ca8",
    "negative": "#c4532f",
    "target": "#3f7d4e",
}
SERIES = [COLOURS[name] for name in ("policy", "negative", "target", "muted", "ink")]
MARKERS = "os^"  # series after the last colour repeat the colours with the next marker
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a category may be called "$x$"
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.solid_capstyle": "round",
}


@contextmanager
def styled() -> Iterator[None]:
    """Use this package's matplotlib style, as a context or as a decorator."""
    with rc_context(STYLE):
        yield


def inline(figure: Figure, name: str, label: str) -> Markup:
    """Return the figure as an SVG element for HTML.

    Args:
        name: prefix of the ids in the SVG, unique on the page.
        label: text for a screen reader.
    """
    buffer = StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name, "svg.id": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def save(figure: Figure, folder: Path) -> list[Path]:
    """Save `figure.svg` and `figure.png` on white, and return their paths."""
    files = [folder / "figure.svg", folder / "figure.png"]
    for file in files:
        with styled():
            metadata = {"Date": None} if file.suffix == ".svg" else None
            figure.savefig(file, dpi=200, facecolor="white", metadata=metadata)
    return files


def legend_name(name: str) -> str:
    """Return a name that the legend shows: matplotlib omits names that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def dot(
    axes: Axes, value: Mapping[str, Any], position: float, colour: str, vertical: bool = False, **options: Any
) -> None:
    """Draw an estimate, with its interval if known, along x; along y if `vertical`.

    Args:
        position: coordinate on the other axis.
        options: passed on to `Axes.plot`.
    """
    if bounded(value):
        ends, positions = [value["low"], value["high"]], [position, position]
        axes.plot(*(positions, ends) if vertical else (ends, positions), color=colour, linewidth=2.2, alpha=0.55)
    point = ([position], [value["estimate"]]) if vertical else ([value["estimate"]], [position])
    axes.plot(*point, "o", color=colour, markersize=6.5, markeredgewidth=0, zorder=3, **options)
