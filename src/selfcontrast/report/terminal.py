"""The summary that a run prints: scores, times and paths."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from selfcontrast.report import against_kl, benchmarks
from selfcontrast.report.text import duration, interval, p_value, percent, short_path, status
from selfcontrast.report.verdict import BASELINE, PROXY, contamination, judge, measure_name

if TYPE_CHECKING:
    from selfcontrast.evaluation.compare import Row
    from selfcontrast.evaluation.curve import Curve
    from selfcontrast.results import Result

WIDEST, WHOLE = 100, 1000  # maximum characters of a paragraph, and of a line that must not be cut
NARROW = 12  # minimum characters of a table's first column


def print_result(result: "Result", folder: Path) -> None:
    """Print a table of all systems and decodings, the verdict, timings, and paths to stdout."""
    confidence = percent(result.comparison["rows"][0]["mean"]["confidence"], 0)
    say("")
    say(f"{result.name}: {measure_name(result)}, mean [{confidence} interval]", "bold")
    if result.comparison["measure"] != "score":
        say(f"No verifier graded this data. Similarity is the {PROXY}.", "italic")
    if seen := contamination(result):
        say(seen)
        say("")
    show(_comparison(result))
    verdict = judge(result)
    say("")
    say(f"{verdict.headline}. {verdict.text}")
    if result.against_kl:
        _print_against_kl(result.against_kl)
    for benchmark in benchmarks.views(result):
        say("")
        show(_benchmark(benchmark))
        say(benchmark.judged)
    if rows := benchmarks.published(result):
        table = columns("published", "measure", "figure", "here", left=2)
        for system, what, _, printed, ours in rows:
            table.add_row(system, what, printed, ours)
        say("")
        show(table)
    say("")
    show(_timings(result))
    say("")
    for name, path in _places(result, folder):
        say(f"{name:<8} {short_path(path)}", wrap=False)


def say(text: str, style: str = "", wrap: bool = True) -> None:
    """Print a paragraph. Without `wrap` it stays one line, for paths."""
    _console(WIDEST if wrap else WHOLE).print(text, style=style, soft_wrap=not wrap)


def show(table: Table) -> None:
    """Print a table as wide as the terminal: its first column wraps, its numbers are never cut."""
    console = _console(WHOLE)
    widths = [console.measure(cell).maximum for cell in table.columns[0].cells]
    first = max([*widths, console.measure(table.columns[0].header).maximum])
    whole = console.measure(table).maximum
    narrowest = whole - first + min(first, NARROW)
    console.print(table, width=min(whole, max(narrowest, _console(WIDEST).width)))


def _console(widest: int) -> Console:
    """Return a console on the current stdout, as wide as the terminal but at most `widest`; `WHOLE` never wraps."""
    plain = Console(highlight=False, markup=False, emoji=False)
    plain.width = WHOLE if widest == WHOLE else min(plain.width, widest)
    return plain


def columns(*heads: str, left: int = 1) -> Table:
    """Return an empty table: the first `left` columns hold words, the others numbers. Only the first one may wrap."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    for index, head in enumerate(heads):
        justify: Literal["left", "right"] = "left" if index < left else "right"
        table.add_column(head, justify=justify, no_wrap=index > 0, overflow="fold")
    return table


def _comparison(result: "Result") -> Table:
    """List SFT at each decoding first, since its sharper decodings are the control; then the policies."""
    rows = result.comparison["rows"]
    table = columns("", "at", "mean", "difference from SFT", "wins", "p", left=2)
    for system in sorted({row["system"] for row in rows}, key=lambda name: (name != BASELINE, name)):
        system_rows = [row for row in rows if row["system"] == system]
        for row in system_rows:
            table.add_row(*_cells(row, first=row is system_rows[0]), end_section=row is system_rows[-1])
    return table


def _cells(row: "Row", first: bool) -> list[str]:
    name = row["system"] if first else ""
    if row["system"] == BASELINE:
        return [name, row["decoding"], interval(row["mean"]), "" if first else "sharpness control", "", ""]
    difference = interval(row["difference"], signed=True)
    wins = percent(row["win_rate"]["estimate"])
    return [name, row["decoding"], interval(row["mean"]), difference, wins, p_value(row["p_value"])]


def _print_against_kl(curve: "Curve") -> None:
    heads = [*against_kl.HEADS]
    indices = [heads.index(name) for name in ("system", "score", "KL from SFT", "entropy")]  # 80 columns
    table = columns(*(heads[at] for at in indices))
    for row in against_kl.rows(curve):
        table.add_row(*(row[at] for at in indices))
    say("")
    show(table)
    if words := against_kl.sentence(curve):
        say(words)


def _benchmark(benchmark: benchmarks.BenchmarkView) -> Table:
    """Return a benchmark's table without its categories, which only the page shows."""
    table = columns(benchmark.name, *benchmark.systems)
    for what, cells in benchmark.rows:
        if not what.startswith(benchmarks.CATEGORY):
            table.add_row(what, *cells)
    return table


def _timings(result: "Result") -> Table:
    table = columns("stage", "", "took", left=2)
    for stage in result.stages:
        table.add_row(stage["name"], status(stage), duration(stage["seconds"]))
    fresh = sum(stage["seconds"] for stage in result.stages if not stage["cached"])
    table.add_row("this run", "", duration(fresh), style="bold")
    if peak := result.provenance.get("peak_memory_gib"):
        table.add_row("peak memory", "", f"{peak:.1f} GiB")
    return table


def _places(result: "Result", folder: Path) -> list[tuple[str, Path]]:
    return [
        ("report", folder / "report.html"),
        ("figure", folder / "figure.png"),
        ("results", folder / "result.json"),
        ("policy", Path(result.policy)),
    ]
