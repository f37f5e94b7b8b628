"""A sweep's files: a figure, a page that needs no network, and tables of numbers."""

import shlex

from selfcontrast.report import sweep_kl, text
from selfcontrast.report.page import render
from selfcontrast.report.style import inline, save
from selfcontrast.report.sweep import Sweep
from selfcontrast.report.sweep_figure import figure, is_ranked, ranked
from selfcontrast.report.sweep_numbers import by_job, by_point, frame, split
from selfcontrast.report.sweep_prompts import different_prompts
from selfcontrast.report.sweep_tables import latex, markdown
from selfcontrast.report.sweep_words import headline, sentence


def write_sweep(sweep: Sweep) -> None:
    """Write to the sweep's folder `report.html`, the figure (svg, png), and the tables (csv, md, tex)."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    save(figure(sweep), sweep.folder)
    frame(sweep).to_csv(sweep.folder / "results.csv", index=False)
    jobs = by_job(sweep)
    points = by_point(sweep) if sweep.repeated else None
    names = 2 if len(sweep.variants) > 1 else 1
    ranks = len(ranked(sweep)) if is_ranked(sweep) else 0
    compared = sweep_kl.equal_kl(sweep)
    tables = [table for table in (points, jobs) if table]
    if compared and compared.rows:
        tables.append((compared.heads, compared.rows))
    against_kl = sweep_kl.figure(sweep)
    (sweep.folder / "results.md").write_text("\n".join(markdown(*table) for table in tables), encoding="utf-8")
    (sweep.folder / "results.tex").write_text("\n".join(latex(*table) for table in tables), encoding="utf-8")
    page = render(
        "sweep.html.jinja",
        sweep=sweep,
        report_args=report_args(sweep),
        headline=headline(sweep),
        sentence=sentence(sweep),
        figure=inline(figure(sweep), "sweep", f"{sweep.measure} by variant" if ranks else "gain over SFT against K"),
        by_rank=ranks,
        figure_kl=inline(against_kl, "kl", f"{sweep.measure} against KL") if against_kl else None,
        compared=compared,
        confidence=sweep.jobs[0].row["mean"]["confidence"],
        points=split(names, *points) if points else None,
        point_names=names,
        different_prompts=different_prompts(sweep),
        jobs=split(2, *jobs),
    )
    (sweep.folder / "report.html").write_text(page, encoding="utf-8")


def report_args(sweep: Sweep) -> str:
    """Return the arguments of the command that writes this report again."""
    args = [text.display_path(source) for source in sweep.sources]
    if list(sweep.sources) != [sweep.folder]:
        args += ["--to", text.display_path(sweep.folder)]
    return shlex.join(args)
