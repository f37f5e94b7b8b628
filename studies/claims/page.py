"""The claims and arms of one or several experiments as tables: a page, Markdown, and on the terminal."""

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
    Arm,
    Claim,
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
NO_VARIATION = "its numbers do not vary, so they cannot tell"
NOT_JUDGED = "Claims are not judged:"
ARMS = (
    "Means over seeds, with intervals for other seeds and prompts. Entropy: mean of −log p of an answer at temperature "
    "1, in nats: lower is sharper. K used: negatives per prompt that training saw."
)


@dataclass(frozen=True)
class JudgedExperiment:
    """An experiment as a reader sees it.

    Attributes:
        title: the settings in which it differs from the others; "" for a single one.
        claims, arms: tables' rows; the arms' heads depend on the decodings.
        rule: how its claims are judged.
        left_out: why there are none.
    """

    title: str
    claims: list[list[str]]
    arm_heads: list[str]
    arms: list[list[str]]
    rule: str = ""
    left_out: str = ""


def rule(level: float) -> str:
    """State how claims are judged at a confidence level."""
    return (
        f"Not supported: the interval's upper end is below {MARGIN}, the smallest effect worth the name. Supported: "
        f"not so, and the effect is above 0 with p < {1 - level:.3g} after Holm's correction for the claims tested. "
        "Inconclusive: neither. Intervals are for other seeds and other prompts (crossed random effects)."
    )


def shown(results: Sequence["Result"]) -> list[JudgedExperiment]:
    """Experiments with several arms or K, over two seeds or more; of fewer a sweep's own table says all there is."""
    found = [one for one in experiments(results) if len(one.arms) > 2 and len(one.seeds) > 1]
    judged = [
        JudgedExperiment(
            title, [_claim(one) for one in claims(experiment)], *_arms(experiment), rule(experiment.confidence)
        )
        for title, experiment in zip(titles(found), found, strict=True)
    ]
    several = len({method(result) for result in results}) > 1 and len({result.seed for result in results}) > 1
    return judged + [JudgedExperiment("", [], [], [], left_out=why) for why in ambiguities(results) if several]


def rules(found: Sequence[JudgedExperiment]) -> list[str]:
    """List the rules by which the experiments' claims are judged, each once."""
    return list(dict.fromkeys(one.rule for one in found if one.rule))


def as_markdown(found: Sequence[JudgedExperiment]) -> str:
    parts = ["# The claims\n", *(f"{words}\n" for words in rules(found))]
    for one in found:
        if one.left_out:
            parts.append(f"{NOT_JUDGED} {one.left_out}.\n")
            continue
        parts += [f"## {one.title}\n"] if one.title else []
        parts += [markdown(CLAIM_HEADS, one.claims), f"{ARMS}\n", markdown(one.arm_heads, one.arms)]
    return "\n".join(parts)


def write_claims(found: Sequence[JudgedExperiment], folder: Path) -> None:
    """Write `claims.html` and `claims.md`."""
    page = render(
        Path(__file__).parent / "claims.html.jinja",
        claims=found,
        claim_heads=CLAIM_HEADS,
        rules=rules(found),
        not_judged=NOT_JUDGED,
        about_arms=ARMS,
    )
    (folder / "claims.html").write_text(page, encoding="utf-8")
    (folder / "claims.md").write_text(as_markdown(found), encoding="utf-8")


def print_claims(found: Sequence[JudgedExperiment], folder: Path) -> None:
    """Print claim, effect, verdict, and where the page is, to stdout."""
    for one in found:
        say("")
        if one.left_out:
            say(f"{NOT_JUDGED} {one.left_out}.", "italic")
            continue
        say(f"The claims{f', {one.title}' if one.title else ''}", "bold")
        table = columns("claim", "effect", "Holm", "verdict", left=1)
        for row in one.claims:
            table.add_row(row[0], row[2], row[4], row[6])
        show(table)
    for words in rules(found):
        say(words, "italic")
    say("")
    say(f"claims   {text.place(folder / 'claims.html')}", wrap=False)


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


def _arms(experiment: Experiment) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: per method its scores by decoding, its entropy and its cost."""
    first = experiment.decodings[0]
    heads = ["method", "seeds", *experiment.decodings, f"minus SFT, {first}"]
    heads += ["entropy", "K used", "prompts", "training tokens", "seconds"]
    return heads, [_arm(experiment, arm) for arm in experiment.arms]


def _arm(experiment: Experiment, arm: Arm) -> list[str]:
    own = experiment.of(arm)
    cells = [arm.name, str(len(own))]
    for way in experiment.decodings:
        mean = experiment.mean({Arm(arm.method, arm.k, way): 1.0})
        cells.append(text.interval(asdict(mean)) if mean else text.NONE)
    less = None if arm.method == BASELINE else experiment.mean({arm: 1.0, Arm(BASELINE, 0, arm.decoding): -1.0})
    surprises = [_row(result, arm)["nll"] for result in own.values()]
    facts = [] if arm.method == BASELINE else [_align(result) for result in own.values()]
    return [
        *cells,
        text.interval(asdict(less), signed=True) if less else text.NONE,
        text.number(_mean(surprises), 2),
        text.number(_mean([fact.get("negatives_per_prompt") for fact in facts]), 1),
        *(text.count(_whole([fact.get(name) for fact in facts])) for name in ("prompts", "tokens")),
        text.number(_mean([fact.get("seconds") for fact in facts]), 0),
    ]


def _row(result: "Result", arm: Arm) -> "Row":
    rows = result.comparison["rows"]
    return next(r for r in rows if (r["system"], r["decoding"]) == (arm.method, arm.decoding))


def _align(result: "Result") -> dict[str, Any]:
    """Return the summary of the last round's training, and its seconds."""
    stage: dict[str, Any] = next((s for s in result.stages if s["name"] == "align"), {"summary": {}})
    return {**stage["summary"], "seconds": stage.get("seconds")}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _whole(values: Sequence[float | None]) -> float | None:
    mean = _mean(values)
    return None if mean is None else float(round(mean))
