"""The summary that a run prints: scores, times and paths."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from selfcontrast.report import against_kl, benchmarks
from selfcontrast.report.text import display_path, duration, interval, p_value, percent, stage_state
from selfcontrast.report.verdict import BASELINE, PROXY, contamination, judge, measure_name

if TYPE_CHECKING:
    from selfcontrast.evaluation.compare import Row
    from selfcontrast.evaluation.curve import Curve
    from selfcontrast.results import Result

MAX_WIDTH, UNCUT_WIDTH = 100, 1000  # maximum characters of a paragraph, and of a line that must not be cut
MIN_FIRST_COLUMN = 12  # minimum characters of a table's first column


def print_result(result: "Result", folder: Path) -> None:
    """Print a table of all systems and decodings, the verdict, timings, and paths to stdout."""
    confidence = percent(result.comparison["rows"][0]["mean"]["confidence"], 0)
    say("")
    say(f"{result.name}: {measure_name(result)}, mean [{confidence} interval]", "bold")
    if result.comparison["measure"] != "score":
        say(f"No verifier graded this data. Similarity is the {PROXY}.", "italic")
    if overlap := contamination(result):
        say(overlap)
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
        say(benchmark.summary)
    if rows := benchmarks.published(result):
        table = columns("published", "measure", "figure", "this run", left=2)
        for system, what, _, printed, measured in rows:
            table.add_row(system, what, printed, measured)
        say("")
        show(table)
    say("")
    show(_timings(result))
    say("")
    for name, path in _paths(result, folder):
        say(f"{name:<8} {display_path(path)}", wrap=False)


def say(text: str, style: str = "", wrap: bool = True) -> None:
    """Print a paragraph. Without `wrap` it stays one line, for paths."""
    _console(MAX_WIDTH if wrap else UNCUT_WIDTH).print(text, style=style, soft_wrap=not wrap)


def show(table: Table) -> None:
    """Print a table that fits the terminal: the first column wraps, and numbers are never cut."""
    console = _console(UNCUT_WIDTH)
    widths = [console.measure(cell).maximum for cell in table.columns[0].cells]
    first_column = max([*widths, console.measure(table.columns[0].header).maximum])
    full_width = console.measure(table).maximum
    min_width = full_width - first_column + min(first_column, MIN_FIRST_COLUMN)
    console.print(table, width=min(full_width, max(min_width, _console(MAX_WIDTH).width)))


def _console(max_width: int) -> Console:
    """Return a console on stdout, as wide as the terminal but at most `max_width`. `UNCUT_WIDTH` prevents wrapping."""
    plain = Console(highlight=False, markup=False, emoji=False)
    plain.width = UNCUT_WIDTH if max_width == UNCUT_WIDTH else min(plain.width, max_width)
    return plain


def columns(*heads: str, left: int = 1) -> Table:
    """Return an empty table: the first `left` columns hold words, the others numbers. Only the first column wraps."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    for index, head in enumerate(heads):
        justify: Literal["left", "right"] = "left" if index < left else "right"
        table.add_column(head, justify=justify, no_wrap=index > 0, overflow="fold")
    return table


def _comparison(result: "Result") -> Table:
    """List SFT at each decoding first, since SFT's sharper decodings are the control. Then list the policies."""
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
    indices = [heads.index(name) for name in ("system", "score", "KL from SFT", "entropy")]  # to fit 80 columns
    table = columns(*(heads[index] for index in indices))
    for row in against_kl.rows(curve):
        table.add_row(*(row[index] for index in indices))
    say("")
    show(table)
    if sentence := against_kl.sentence(curve):
        say(sentence)


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
        table.add_row(stage["name"], stage_state(stage), duration(stage["seconds"]))
    computed_seconds = sum(stage["seconds"] for stage in result.stages if not stage["cached"])
    table.add_row("this run", "", duration(computed_seconds), style="bold")
    if peak := result.provenance.get("peak_memory_gib"):
        table.add_row("peak memory", "", f"{peak:.1f} GiB")
    return table


def _paths(result: "Result", folder: Path) -> list[tuple[str, Path]]:
    return [
        ("report", folder / "report.html"),
        ("figure", folder / "figure.png"),
        ("results", folder / "result.json"),
        ("policy", Path(result.policy)),
    ]
