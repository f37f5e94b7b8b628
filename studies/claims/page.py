"""Show the claims and methods of experiments in tables: on a page, as Markdown, and on the terminal."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcontrast.report import text
from selfcontrast.report.page import render
from selfcontrast.report.sweep_tables import markdown
from selfcontrast.report.terminal import columns, say, show
from selfcontrast.report.verdict import BASELINE
from studies.claims.judge import (
    MARGIN,
    Claim,
    Condition,
    Experiment,
    ambiguities,
    claims,
    experiments,
    method,
    titles,
)

if TYPE_CHECKING:
    from selfcontrast.evaluation.compare import Row
    from selfcontrast.results import Result

CLAIM_HEADS = ["claim", "measured", "effect", "p", "Holm", "seeds × prompts", "verdict"]
NO_VARIATION = "its numbers do not vary, so no interval can be computed"
NOT_JUDGED = "Claims were not judged:"
ABOUT_METHODS = (
    "Means over seeds, with intervals over seeds and prompts. Entropy: mean −log p of an answer at temperature 1, in "
    "nats; lower is sharper. K used: negatives per prompt in training."
)


@dataclass(frozen=True)
class JudgedExperiment:
    """The tables of one experiment.

    Attributes:
        title: the settings in which it differs from the other experiments; "" for a single experiment.
        claims, methods: rows of the two tables.
        method_heads: heads of the table of methods. They depend on the decodings.
        rule: how the claims are judged.
        left_out: why claims were not judged; "" if they were.
    """

    title: str
    claims: list[list[str]]
    method_heads: list[str]
    methods: list[list[str]]
    rule: str = ""
    left_out: str = ""


def rule(confidence: float) -> str:
    """State how claims are judged at a confidence level."""
    return (
        f"Not supported: the interval's upper end is below {MARGIN}, the smallest effect that counts. Supported: the "
        f"upper end is not below it, and the effect is above 0 with p < {1 - confidence:.3g} after Holm's correction "
        "for the claims tested. Inconclusive: all other claims. Intervals are over seeds and prompts (crossed random "
        "effects)."
    )


def judge_experiments(results: Sequence["Result"]) -> list[JudgedExperiment]:
    """Judge the experiments with several methods or K over two or more seeds. A sweep's report covers the others."""
    usable = [e for e in experiments(results) if len(e.conditions) > 2 and len(e.seeds) > 1]
    judged = [
        JudgedExperiment(
            title, [_claim(claim) for claim in claims(experiment)], *_methods(experiment), rule(experiment.confidence)
        )
        for title, experiment in zip(titles(usable), usable, strict=True)
    ]
    is_comparison = len({method(result) for result in results}) > 1 and len({result.seed for result in results}) > 1
    return judged + [JudgedExperiment("", [], [], [], left_out=why) for why in ambiguities(results) if is_comparison]


def rules(judged: Sequence[JudgedExperiment]) -> list[str]:
    """List the rules by which the experiments' claims are judged, each once."""
    return list(dict.fromkeys(experiment.rule for experiment in judged if experiment.rule))


def as_markdown(judged: Sequence[JudgedExperiment]) -> str:
    parts = ["# The claims\n", *(f"{sentence}\n" for sentence in rules(judged))]
    for experiment in judged:
        if experiment.left_out:
            parts.append(f"{NOT_JUDGED} {experiment.left_out}.\n")
            continue
        parts += [f"## {experiment.title}\n"] if experiment.title else []
        parts += [markdown(CLAIM_HEADS, experiment.claims), f"{ABOUT_METHODS}\n"]
        parts.append(markdown(experiment.method_heads, experiment.methods))
    return "\n".join(parts)


def write_claims(judged: Sequence[JudgedExperiment], folder: Path) -> None:
    """Write `claims.html` and `claims.md`."""
    page = render(
        Path(__file__).parent / "claims.html.jinja",
        claims=judged,
        claim_heads=CLAIM_HEADS,
        rules=rules(judged),
        not_judged=NOT_JUDGED,
        about_methods=ABOUT_METHODS,
    )
    (folder / "claims.html").write_text(page, encoding="utf-8")
    (folder / "claims.md").write_text(as_markdown(judged), encoding="utf-8")


def print_claims(judged: Sequence[JudgedExperiment], folder: Path) -> None:
    """Print each claim with effect and verdict, and the page's path, to stdout."""
    for experiment in judged:
        say("")
        if experiment.left_out:
            say(f"{NOT_JUDGED} {experiment.left_out}.", "italic")
            continue
        say(f"The claims{f', {experiment.title}' if experiment.title else ''}", "bold")
        table = columns("claim", "effect", "Holm", "verdict", left=1)
        for row in experiment.claims:
            table.add_row(row[0], row[2], row[4], row[6])
        show(table)
    for sentence in rules(judged):
        say(sentence, "italic")
    say("")
    say(f"claims   {text.display_path(folder / 'claims.html')}", wrap=False)


def _claim(claim: Claim) -> list[str]:
    effect = claim.effect
    return [
        claim.claim,
        claim.contrast,
        text.interval(asdict(effect), signed=True),
        text.p_value(effect.p_value),
        text.p_value(claim.p_holm),
        f"{effect.seeds} × {effect.prompts}",
        claim.verdict if effect.seeds < 2 or math.isfinite(effect.high) else f"{claim.verdict}: {NO_VARIATION}",
    ]


def _methods(experiment: Experiment) -> tuple[list[str], list[list[str]]]:
    """Return the table of methods: heads, and rows of scores by decoding, entropy, and training cost."""
    first = experiment.decodings[0]
    heads = ["method", "seeds", *experiment.decodings, f"minus SFT, {first}"]
    heads += ["entropy", "K used", "prompts", "training tokens", "seconds"]
    return heads, [_method(experiment, condition) for condition in experiment.conditions]


def _method(experiment: Experiment, condition: Condition) -> list[str]:
    results = experiment.results_of(condition).values()
    cells = [condition.name, str(len(results))]
    for decoding in experiment.decodings:
        mean = experiment.mean({Condition(condition.method, condition.k, decoding): 1.0})
        cells.append(text.interval(asdict(mean)) if mean else text.NONE)
    difference = None
    if condition.method != BASELINE:
        difference = experiment.mean({condition: 1.0, Condition(BASELINE, 0, condition.decoding): -1.0})
    nlls = [_row(result, condition)["nll"] for result in results]
    summaries = [] if condition.method == BASELINE else [_align(result) for result in results]
    return [
        *cells,
        text.interval(asdict(difference), signed=True) if difference else text.NONE,
        text.number(_mean(nlls), 2),
        text.number(_mean([summary.get("negatives_per_prompt") for summary in summaries]), 1),
        *(text.count(_rounded_mean([summary.get(name) for summary in summaries])) for name in ("prompts", "tokens")),
        text.number(_mean([summary.get("seconds") for summary in summaries]), 0),
    ]


def _row(result: "Result", condition: Condition) -> "Row":
    rows = result.comparison["rows"]
    return next(r for r in rows if (r["system"], r["decoding"]) == (condition.method, condition.decoding))


def _align(result: "Result") -> dict[str, Any]:
    """Return the summary of the last iteration's training, and its seconds."""
    stage: dict[str, Any] = next((s for s in result.stages if s["name"] == "align"), {"summary": {}})
    return {**stage["summary"], "seconds": stage.get("seconds")}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rounded_mean(values: Sequence[float | None]) -> float | None:
    mean = _mean(values)
    return None if mean is None else float(round(mean))
