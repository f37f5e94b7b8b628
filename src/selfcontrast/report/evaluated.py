"""The `report.html` of one model that `evaluate.py` has measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from selfcontrast.report import benchmarks, figures
from selfcontrast.report.page import lm_eval_rows, render
from selfcontrast.report.style import inline
from selfcontrast.report.text import interval, place
from selfcontrast.report.verdict import contamination, measure_name

if TYPE_CHECKING:
    from selfcontrast.evaluate import Evaluated


def write_evaluated(result: "Evaluated", folder: Path) -> None:
    """Writes `report.html` to `folder`."""
    page = render("evaluated.html.jinja", again=place(folder), **_content(result))
    (folder / "report.html").write_text(page, encoding="utf-8")


def _content(result: "Evaluated") -> dict[str, Any]:
    first = result.comparison["rows"][0]
    categories = figures.categories(result)
    return {
        "result": result,
        "name": Path(result.model).name,
        "headline": f"A {measure_name(result)} of {interval(first['mean'])} at {first['decoding']}",
        "measure": measure_name(result),
        "proxy": result.comparison["measure"] != "score",
        "decoding": first["decoding"],
        "level": first["mean"]["level"],
        "prompts": first["mean"]["clusters"],
        "contamination": contamination(result),
        "lm_eval": lm_eval_rows(dict.fromkeys(result.systems, result.lm_eval), first["mean"]["level"]),
        "benchmarks": benchmarks.shown(result),
        "fresh": sum(stage["seconds"] for stage in result.stages if not stage["cached"]),
        "config": yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True, width=100),
        "figure_systems": inline(figures.systems(result), "systems", "Means with intervals, by decoding"),
        "figure_categories": inline(categories, "categories", "Means by category") if categories else None,
    }
