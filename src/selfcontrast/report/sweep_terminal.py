"""The summary that a sweep prints: score against K as a table and a plot, and the paths of its files."""

from selfcontrast.report import sweep_kl, text
from selfcontrast.report.sweep import Point, Sweep, mean
from selfcontrast.report.sweep_numbers import HEADS, numbers, seeds_cell
from selfcontrast.report.sweep_prompts import different_prompts
from selfcontrast.report.sweep_words import headline, sentence
from selfcontrast.report.terminal import columns, say, show
from selfcontrast.report.verdict import PROXY

PLOT = 60  # characters


def print_sweep(sweep: Sweep) -> None:
    """Print the table, the plot, the jobs without a result, and paths to stdout."""
    say("")
    if sweep.jobs:
        _print_jobs(sweep)
    for job in sweep.missing:
        say(f"no result: job {job.folder}{f' ({job.overrides})' if job.overrides else ''}", "bold")
        if job.why:
            say(job.why)
    if sweep.jobs:
        say("")
        for name in ("figure.png", "report.html", "results.csv"):
            say(f"{name.split('.')[0]:<8} {text.display_path(sweep.folder / name)}", wrap=False)


def _print_jobs(sweep: Sweep) -> None:
    jobs = f"{len(sweep.jobs)} job{'s' if len(sweep.jobs) > 1 else ''}"
    say(f"{sweep.measure} against K at {sweep.decoding}, {jobs}", "bold")
    if sweep.proxy:
        say(f"No verifier graded this data. Similarity is the {PROXY}.", "italic")
    several, varied = len(sweep.seeds) > 1, len(sweep.variants) > 1
    names = [*(["variant"] if varied else []), "K", *(["seeds"] if several else [])]
    heads = [sweep.measure.split()[0], *HEADS]
    left_out = {
        "align",
        "tokens",
        "total time",
        *(["wins", "p", "used"] if varied else []),
    }  # to fit 80 columns; the page shows these columns too
    indices = [index for index, head in enumerate(heads) if head not in left_out]
    table = columns(*names, *(heads[index] for index in indices), left=1)
    for point in sweep.points:
        cells = [*([point.variant] if varied else []), str(point.k), *([seeds_cell(sweep, point)] if several else [])]
        row = numbers(point)
        table.add_row(*cells, *(row[index] for index in indices))
    show(table)
    say("")
    if note := different_prompts(sweep):
        say(note, "bold")
    say("Holm: p corrected for the number of rows.", "italic")
    if sweep.repeated:
        say("Means over seeds, with Student's t intervals and tests over seeds.", "italic")
    say("")
    for line in plot(sweep):
        say(line, wrap=False)
    say("")
    if compared := sweep_kl.equal_kl(sweep):
        kl_table = columns(*compared.heads)
        for row in compared.rows:
            kl_table.add_row(*row)
        if compared.rows:
            show(kl_table)
        say(" ".join(compared.notes), "italic")
        say("")
    say(f"{headline(sweep)}. {sentence(sweep)}")


def plot(sweep: Sweep) -> list[str]:
    """Draw the figure in characters: a row per point with its interval and estimate; a vertical line marks its SFT.

    With several variants, a line with the variant's name stands above its first K.
    """
    spans = [_span(point) for point in sweep.points]
    levels = {
        variant: mean([job for job in sweep.jobs if job.variant in members], base=True)
        for members in sweep.baselines
        for variant in members
    }
    low = min(*levels.values(), *(span[0] for span in spans))
    high = max(*levels.values(), *(span[1] for span in spans))

    def column(value: float) -> int:
        return round((value - low) / ((high - low) or 1) * (PLOT - 1))

    lines, named = list[str](), sweep.variants[0] if len(sweep.variants) == 1 else None
    for point, (left, right) in zip(sweep.points, spans, strict=True):
        if point.variant != named:
            named = point.variant
            lines.append(f"  {named or text.NONE}")
        cells, sft = [" "] * PLOT, levels[point.variant]
        cells[column(left) : column(right) + 1] = "─" * (column(right) - column(left) + 1)
        cells[column(sft)] = "│" if cells[column(sft)] == " " else "┼"
        cells[column(mean(point.jobs))] = "●"
        lines.append(f"{f'K={point.k}':>6}  {''.join(cells).rstrip()}")
    for sft in dict.fromkeys(levels.values()):
        lines += [" " * (8 + column(sft)) + "│", " " * (7 + column(sft)) + f"SFT {text.number(sft)}"]
    return lines


def _span(point: Point) -> tuple[float, float]:
    """Return the interval of one job, or the range over several seeds."""
    first = point.jobs[0].row["mean"]
    if len(point.jobs) == 1 and text.bounded(first):
        return first["low"], first["high"]
    values = [float(job.row["mean"]["estimate"]) for job in point.jobs]
    return min(values), max(values)
