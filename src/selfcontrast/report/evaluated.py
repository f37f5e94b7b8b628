"""The report of one model that `evaluate.py` has measured: `report.html` and the terminal tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from selfcontrast.report import benchmarks, figures
from selfcontrast.report.benchmarks import CATEGORY, cell
from selfcontrast.report.page import lm_eval_rows, render
from selfcontrast.report.style import inline
from selfcontrast.report.terminal import columns, say, show
from selfcontrast.report.text import display_path, interval, number
from selfcontrast.report.verdict import contamination, measure_name

if TYPE_CHECKING:
    from selfcontrast.results import Evaluated


def write_evaluated(result: "Evaluated", folder: Path) -> None:
    """Write `report.html` to `folder`."""
    page = render("evaluated.html.jinja", report_args=display_path(folder), **_content(result))
    (folder / "report.html").write_text(page, encoding="utf-8")


def print_evaluated(result: "Evaluated", output: Path) -> None:
    """Print the numbers to stdout."""
    measure = result.comparison["measure"]
    table = columns(f"{measure}, at", "mean", "tokens")
    for row in result.comparison["rows"]:
        table.add_row(row["decoding"], interval(row["mean"]), number(row["tokens"], 1))
    say("")
    show(table)
    if result.lm_eval:
        table = columns("lm-eval task", "metric", "", left=2)
        confidence = result.comparison["rows"][0]["mean"]["confidence"]
        for task, metric, (value,) in lm_eval_rows({"": result.lm_eval}, confidence):
            table.add_row(task, metric, value)
        say("")
        show(table)
    for name, benchmark in result.benchmarks.items():
        table = columns(name, "")
        for line in benchmark["lines"]:
            if not line["what"].startswith(CATEGORY):
                table.add_row(line["what"], cell(line))
        say("")
        show(table)
    say("")
    for name, file in (("report", "report.html"), ("results", "result.json")):
        say(f"{name:<8} {display_path(output / file)}", wrap=False)


def _content(result: "Evaluated") -> dict[str, Any]:
    first = result.comparison["rows"][0]
    categories = figures.categories(result)
    return {
        "result": result,
        "name": Path(result.model).name,
        "headline": f"A {measure_name(result)} of {interval(first['mean'])} at {first['decoding']}",
        "measure": measure_name(result),
        "decodings": [
            [row["decoding"], interval(row["mean"]), number(row["nll"], 1), number(row["tokens"], 1)]
            for row in result.comparison["rows"]
        ],
        "proxy": result.comparison["measure"] != "score",
        "decoding": first["decoding"],
        "confidence": first["mean"]["confidence"],
        "prompts": first["mean"]["clusters"],
        "contamination": contamination(result),
        "lm_eval": lm_eval_rows(dict.fromkeys(result.systems, result.lm_eval), first["mean"]["confidence"]),
        "benchmarks": benchmarks.views(result),
        "computed_seconds": sum(stage["seconds"] for stage in result.stages if not stage["cached"]),
        "config": yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True, width=100),
        "figure_systems": inline(figures.systems(result), "systems", "Means with intervals, by decoding"),
        "figure_categories": inline(categories, "categories", "Means by category") if categories else None,
    }
