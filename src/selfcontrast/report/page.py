"""A run's `report.html`: one file that needs no network, with its figures inside."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure

from selfcontrast.evaluation.statistics.task_metrics import STDERR, metric_interval
from selfcontrast.filters.signals import FRACTIONS
from selfcontrast.report import against_kl, benchmarks, figures, text
from selfcontrast.report.style import inline, save
from selfcontrast.report.training import step_zero, throughput
from selfcontrast.report.verdict import BASELINE, PROXY, contamination, judge, measure_name

if TYPE_CHECKING:
    from selfcontrast.evaluation.compare import Row
    from selfcontrast.results import Result

FILTERS = (
    "number", "interval", "percent", "count", "duration", "display_path", "stage_state", "unbroken",
)  # fmt: skip


def _percent(value: float) -> str:
    return text.percent(value, 2)


def _percentiles(values: Sequence[float]) -> str:
    return " / ".join(text.count(round(value)) for value in values)


# Keys of the filter's summary, with their labels on the page and their formats.
FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "prompts": ("prompts with sampled responses", text.count),
    "prompts_used": ("prompts used", text.count),
    "prompts_dropped_for_distinct": ("prompts dropped (too few distinct candidates)", text.count),
    "prompts_dropped_for_kept": ("prompts dropped (the selector keeps too few)", text.count),
    "prompts_dropped_for_chosen": ("prompts dropped (no candidate to choose)", text.count),
    "prompts_refilled": ("prompts refilled with candidates that the selector left out", text.count),
    "candidates": ("responses sampled", text.count),
    "distinct_per_prompt": ("distinct candidates per prompt", text.count),
    "duplicate_share": ("repeated responses", _percent),
    "empty_share": ("empty responses", _percent),
    "copies_of_target_share": ("copies of the target", _percent),
    "similarity_candidates": ("mean similarity to the target, candidates", text.number),
    "similarity_negatives": ("mean similarity to the target, negatives drawn", text.number),
    "score_candidates": ("mean score, candidates", text.number),
    "score_negatives": ("mean score, negatives drawn", text.number),
    "score_chosen": ("mean score, chosen candidates", text.number),
    "chosen_is_target_share": ("chosen candidates with the target's text", _percent),
    "false_negatives_before": ("candidates as good as the target", _percent),
    "false_negatives_after": ("negatives as good as the target (false negatives)", _percent),
    "tokens_candidates": ("tokens per candidate", text.count),
    "tokens_negatives": ("tokens per negative", text.count),
    "tokens_left": ("tokens per candidate not drawn", text.count),
    "length_similarity_correlation": ("correlation of length and similarity, within prompts", text.number),
    "characters_targets": ("characters of a target (10%, median, 90%)", _percentiles),
    "characters_candidates": ("characters of a candidate", _percentiles),
    "characters_negatives": ("characters of a negative", _percentiles),
    "distinct_1_candidates": ("distinct-1 of a prompt's candidates", text.number),
    "distinct_1_negatives": ("distinct-1 of a prompt's negatives", text.number),
    "distinct_2_candidates": ("distinct-2 of a prompt's candidates", text.number),
    "distinct_2_negatives": ("distinct-2 of a prompt's negatives", text.number),
    "self_bleu_candidates": ("self-BLEU of a prompt's candidates (1: all the same)", text.number),
    "self_bleu_negatives": ("self-BLEU of a prompt's negatives", text.number),
}


# Rows of the filter's table of signals.
SIGNALS = {
    "similarity": "similarity to the target",
    "consensus": "consensus: mean similarity to the prompt's other responses",
    "log_prob": "the sampler's log-probability per token",
    "rank_sum": "sum of the ranks by the other signals",
}


# Keys of a stage's summary about texts that a model read in another form or in part, with labels as in `FACTS`.
CHANGED: dict[str, tuple[str, Callable[[Any], str]]] = {
    "targets_changed": ("targets that changed in tokenisation", text.count),
    "responses_changed": ("responses that changed in tokenisation", text.count),
    "texts_cut": ("texts longer than the model reads", text.count),
    "unread_fraction": ("fraction of all tokens that was not read", _percent),
}


def write_report(result: "Result", folder: Path) -> None:
    """Write `report.html`, and the comparison as `figure.svg` and `figure.png`, to `folder`."""
    method = result.comparison["rows"][-1]["system"]
    save(figures.systems(result, title=f"{method}, K = {result.negatives}"), folder)
    page = render("page.html.jinja", **_content(result, folder))
    (folder / "report.html").write_text(page, encoding="utf-8")


def render(template: str | Path, **content: Any) -> str:
    """Fill a template of this package, or another file that extends one. Text is escaped, `Markup` is not."""
    file = Path(template)
    package = jinja2.PackageLoader("selfcontrast.report", ".")
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([package, jinja2.FileSystemLoader(file.parent)]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(BASELINE=BASELINE, PROXY=PROXY, now=f"{datetime.now():%Y-%m-%d %H:%M}")
    environment.filters.update({name: getattr(text, name) for name in FILTERS})
    return environment.get_template(file.name).render(**content)


def _content(result: "Result", folder: Path) -> dict[str, Any]:
    rows = result.comparison["rows"]
    names = list(dict.fromkeys(row["system"] for row in rows))
    stages = {stage["name"]: stage for stage in result.stages}
    return {
        "result": result,
        "verdict": judge(result),
        "measure": measure_name(result),
        "proxy": result.comparison["measure"] != "score",
        **comparison_tables(sorted(rows, key=lambda row: names.index(row["system"])), measure_name(result)),
        "likelihood": [
            [row["system"], text.interval(row["log_prob_per_token"])] for row in result.comparison["likelihood"]
        ],
        "contamination": contamination(result),
        "flagged_prompts": result.comparison.get("contamination", {}).get("examples", []),
        "decoding": rows[0]["decoding"],
        "confidence": rows[0]["mean"]["confidence"],
        "prompts": rows[0]["mean"]["clusters"],
        "align": stages["align"]["summary"] if "align" in stages else {},
        "throughput": {name: throughput(records) for name, records in result.histories.items()},
        "step_zero": step_zero(result.histories.get("align", [])),
        "facts": [*changed_facts(result.stages), *filter_facts(stages.get("filter", {}).get("summary", {}))],
        "signals": signal_rows(result.similarities.get("signals", [])),
        "signal_heads": ["keep the lowest by", "AUC", *(f"false negatives at {fraction:g}" for fraction in FRACTIONS)],
        "cut": any(result.similarities.get("cuts", {}).values()),
        "benchmarks": benchmarks.views(result),
        "published": benchmarks.published(result),
        "lm_eval": lm_eval_rows(result.lm_eval, rows[0]["mean"]["confidence"]),
        "computed_seconds": sum(stage["seconds"] for stage in result.stages if not stage["cached"]),
        "config": yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True, width=100),
        "report_args": text.display_path(folder),
        "against_kl": against_kl.rows(result.against_kl) if result.against_kl else [],
        "against_kl_heads": against_kl.HEADS,
        "against_kl_sentence": against_kl.sentence(result.against_kl) if result.against_kl else "",
        **_figures(result),
    }


def _figures(result: "Result") -> dict[str, Markup | None]:
    figures_and_labels: list[tuple[str, Figure | None, str]] = [
        ("systems", figures.systems(result), "Means with intervals, by decoding"),
        ("categories", figures.categories(result), "Means with intervals, by category"),
        ("against_kl", against_kl.figure(result), "Score against KL from the fine-tuned model"),
        (
            "fine_tuning",
            figures.fine_tuning(result.histories.get("sft", [])),
            "Curves of supervised fine-tuning",
        ),
        ("aligning", figures.aligning(result.histories.get("align", [])), "Curves of preference training"),
        (
            "continuing",
            figures.fine_tuning([r for r in result.histories.get("align", []) if "margin" not in r]),
            "Curves of supervised fine-tuning, continued",
        ),
        ("by_rank", figures.by_rank(result.histories.get("align", [])), "Accuracy and margin by rank of similarity"),
        ("similarities", figures.similarities(result), "Histogram of similarity to the target"),
    ]
    return {
        f"figure_{name}": inline(figure, name, label) if figure else None for name, figure, label in figures_and_labels
    }


def filter_facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return labels and formatted values of the filter's facts, without facts that it could not measure."""
    measured = {key: value for key, value in summary.items() if value is not None and value != []}
    return [(label, formatter(measured[key])) for key, (label, formatter) in FACTS.items() if key in measured]


def comparison_tables(rows: Sequence["Row"], measure: str) -> dict[str, list[Any]]:
    """Return heads and cells of the comparison: the main table, and a second table for columns that do not fit."""
    return {
        "comparison_heads": [
            "system",
            "decoding",
            measure,
            "difference from SFT, same decoding",
            "p",
            "win rate over SFT",
        ],
        "comparison": [
            [
                row["system"],
                row["decoding"],
                text.interval(row["mean"]),
                text.interval(row.get("difference"), signed=True),
                text.p_value(row.get("p_value")),
                text.percent_interval(row.get("win_rate")),
            ]
            for row in rows
        ],
        "comparison_details_heads": [
            "system",
            "decoding",
            "difference from SFT at its best",
            "nll (nats)",
            "tokens",
        ],
        "comparison_details": [
            [
                row["system"],
                row["decoding"],
                _against_best(row),
                text.number(row["nll"], 1),
                text.number(row["tokens"], 1),
            ]
            for row in rows
        ],
    }


def _against_best(row: "Row") -> str:
    if not (best := row.get("against_best")):
        return text.NONE
    return f"{text.interval(best['difference'], signed=True)} ({best['decoding']})"


def signal_rows(table: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return per signal its name, its AUC, and the fraction of false negatives at each fraction of `FRACTIONS`."""
    return [
        [SIGNALS[row["signal"]], text.number(row["auc"]), *(text.percent(value) for value in row["false_negatives"])]
        for row in table
    ]


def lm_eval_rows(
    by_system: dict[str, dict[str, dict[str, float]]], confidence: float
) -> list[tuple[str, str, Sequence[str]]]:
    """Return task, metric, and its value per system in the order of `by_system`, with the interval if known."""
    keys = dict.fromkeys(
        (task, metric)
        for tasks in by_system.values()
        for task, metrics in tasks.items()
        for metric in metrics
        if not metric.endswith(STDERR)
    )
    return [
        (task, metric, [metric_cell(tasks.get(task, {}), metric, confidence) for tasks in by_system.values()])
        for task, metric in keys
    ]


def metric_cell(metrics: dict[str, float], name: str, confidence: float) -> str:
    """Format a metric of lm-eval, with its interval if its standard error is known."""
    if name not in metrics:
        return text.NONE
    if name + STDERR not in metrics:
        return text.number(metrics[name])
    return text.interval(asdict(metric_interval(metrics, name, confidence)))


def changed_facts(stages: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return labels and formatted values of the facts in `CHANGED`, stage by stage."""
    return [
        (f"{stage['name']}: {label}", formatter(stage["summary"][key]))
        for stage in stages
        for key, (label, formatter) in CHANGED.items()
        if stage["summary"].get(key)
    ]
