"""Published figures beside measured ones: read from a file that its user fills in, each with its source and page.

None is in the package: the paper's tables could not be had when it was written, and a figure that nobody can look up is
worse than none. An entry without a figure is shown nowhere.
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
class Figure:
    """A published number.

    Attributes:
        system: as reports call it: SFT, or a method.
        negatives: K; None where the method has none.
        benchmark: by its name in `evaluation.benchmarks`, or "lm_eval".
        what: the measure, as the benchmark's line has it; of lm_eval "TASK METRIC".
        figure: as it is printed, a share in percent; None where it is not known.
        source, page: where it is printed.
    """

    system: str
    negatives: int | None
    benchmark: str
    what: str
    figure: float | None
    source: str | None
    page: str | int | None


@dataclass(frozen=True)
class Beside:
    """A published figure, and what this run measured: a line's value, kind and note; None where it did not."""

    published: Figure
    kind: str | None
    measured: Mapping[str, Any] | None
    note: str = ""


def read_figures(name: str) -> list[Figure]:
    """The figures of a file, or of `evaluation/published/NAME.yaml`; those that are not filled in are left out.

    Raises:
        UserError: for a file that cannot be read, or an entry that lacks a key, or a figure without source and page.
    """
    file = FOLDER / f"{name}.yaml" if (FOLDER / f"{name}.yaml").is_file() else Path(name)
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"published={name}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(entries, list):
        raise UserError(f"published={name}: a list of figures, as in evaluation/published/hh_rlhf.yaml")
    found = [_figure(entry, f"{file}, entry {number}") for number, entry in enumerate(entries, start=1)]
    return [figure for figure in found if figure.figure is not None]


def _figure(entry: Any, where: str) -> Figure:
    names = [field.name for field in fields(Figure)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise UserError(f"{where}: it must have the keys {', '.join(names)}, and no other")
    try:
        figure = TypeAdapter(Figure).validate_python(entry)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if figure.figure is not None and not (figure.source and figure.page):
        raise UserError(f"{where}: a figure needs its source and page")
    return figure


def beside(
    figures: list[Figure],
    negatives: int,
    benchmarks: Mapping[str, Any],
    lm_eval: Mapping[str, Any],
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """Each figure that is of this run's systems and K, with what was measured, as JSON.

    Args:
        benchmarks, lm_eval: as of `results.Result`.
        level: of lm-eval's intervals; a benchmark's have their own.
    """
    lines = {
        (line["system"], name, line["what"]): (line["kind"], line["value"], line.get("note", ""))
        for name, found in benchmarks.items()
        for line in found["lines"]
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
            rows.append(asdict(Beside(figure, kind, value, note)))
    return rows
