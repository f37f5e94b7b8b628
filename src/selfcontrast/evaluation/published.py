"""Compare published figures with measured ones. Users fill in the published figures, each with its source and page.

The package ships no figures: the paper's tables were not available when the package was written, and a figure without
a source that readers can check is worse than no figure. Entries without a figure are not shown.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from selfcontrast.errors import UserError
from selfcontrast.evaluation.statistics.task_metrics import metric_interval
from selfcontrast.files import EVALUATION

FOLDER = EVALUATION / "published"


@dataclass(frozen=True)
class PublishedFigure:
    """A published number.

    Attributes:
        system: the system's name in reports: SFT, or a method.
        negatives: K; None for a method without K.
        benchmark: the benchmark's name in `evaluation.benchmarks`, or "lm_eval".
        what: the measure, as in the benchmark's line; "TASK METRIC" for lm_eval.
        figure: the number as printed, fractions in percent; None if unknown.
        source, page: where the number is printed.
    """

    system: str
    negatives: int | None
    benchmark: str
    what: str
    figure: float | None
    source: str | None
    page: str | int | None


@dataclass(frozen=True)
class PublishedComparison:
    """A published figure, and the kind, value and note of the line that this run measured; None if not measured."""

    published: PublishedFigure
    kind: str | None
    measured: Mapping[str, Any] | None
    note: str = ""


def read_figures(name: str) -> list[PublishedFigure]:
    """Read the figures of `evaluation/published/NAME.yaml`, or of the file NAME. Skip entries without a figure.

    Raises:
        UserError: for an unreadable file, an entry with missing or unknown keys, or a figure without source and page.
    """
    file = FOLDER / f"{name}.yaml" if (FOLDER / f"{name}.yaml").is_file() else Path(name)
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"published={name}: cannot be read ({str(error).splitlines()[0]}). Name a YAML file."
        ) from error
    if not isinstance(entries, list):
        raise UserError(f"published={name}: not a list of figures. Write it as in evaluation/published/hh_rlhf.yaml.")
    figures = [_figure(entry, f"{file}, entry {number}") for number, entry in enumerate(entries, start=1)]
    return [figure for figure in figures if figure.figure is not None]


def _figure(entry: Any, where: str) -> PublishedFigure:
    names = [field.name for field in fields(PublishedFigure)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise UserError(f"{where}: an entry has exactly the keys {', '.join(names)}.")
    try:
        figure = TypeAdapter(PublishedFigure).validate_python(entry)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{where}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}. Correct it.") from error
    if figure.figure is not None and not (figure.source and figure.page):
        raise UserError(f"{where}: a figure needs source and page. Fill them in.")
    return figure


def compare_published(
    figures: list[PublishedFigure],
    negatives: int,
    benchmarks: Mapping[str, Any],
    lm_eval: Mapping[str, Any],
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """Return the figures of this run's systems and K with the measured values, as JSON.

    Args:
        benchmarks, lm_eval: as in `results.Result`.
        confidence: confidence level of lm-eval's intervals; benchmarks have their own.
    """
    lines = {
        (line["system"], name, line["what"]): (line["kind"], line["value"], line.get("note", ""))
        for name, benchmark in benchmarks.items()
        for line in benchmark["lines"]
    }
    for system, tasks in lm_eval.items():
        for task, metrics in tasks.items():
            for metric in metrics:
                value = asdict(metric_interval(metrics, metric, confidence))
                lines[system, "lm_eval", f"{task} {metric}"] = ("share", value, "")
    systems = {system for system, _, _ in lines}
    rows = []
    for figure in figures:
        if figure.system in systems and figure.negatives in (None, negatives):
            kind, value, note = lines.get((figure.system, figure.benchmark, figure.what), (None, None, ""))
            rows.append(asdict(PublishedComparison(figure, kind, value, note)))
    return rows
