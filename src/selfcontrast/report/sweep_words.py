"""A sweep's finding in words: a headline, and a paragraph with the outcome of every point."""

from collections.abc import Sequence

from selfcontrast.report import text
from selfcontrast.report.sweep import Sweep, best, comparable, control_of, mean, point_name
from selfcontrast.report.sweep_numbers import numbers

OUTCOMES = {
    "better": "Clear gain over",
    "worse": "Clear loss against",
    "level": "No significant difference from",
}
MOST_LISTED = 6  # points without a significant difference that are named; more are counted


def headline(sweep: Sweep) -> str:
    """Return the finding in a few words.

    For one variant, give the scores at the first and the last K, and the score of SFT; claim no trend. For several
    variants, give the best point, its SFT, and its corrected p-value. All scores are over the seeds that points share.
    """
    if len(sweep.variants) > 1:
        return _best_of(sweep)
    points, seeds = comparable(sweep.points)
    ends = {point.k: f"{text.number(mean(point.jobs))} at K={point.k}" for point in (points[0], points[-1])}
    measure = sweep.measure.capitalize()
    if not seeds:
        scores = [f"{ends[point.k]} (seed {_listed(point.seeds)})" for point in (points[0], points[-1])]
        return f"{measure}: {', '.join(scores)}: different seeds, so not compared"
    sft = text.number(mean([job for point in points for job in point.jobs], base=True))
    return f"{measure}: {', '.join(ends.values())}; SFT {sft}{_on(seeds, sweep)}"


def _best_of(sweep: Sweep) -> str:
    points, seeds = comparable(sweep.points)
    measure = sweep.measure.capitalize()
    if not seeds:
        return f"{measure} of {len(points)} variants: no seed is common to all, so not compared"
    point = best(sweep)
    score, sft = text.number(mean(point.jobs)), text.number(mean(point.jobs, base=True))
    p = text.p_equals(point.p_holm)
    test = "" if p.endswith(text.NONE) else f"; {p}, corrected for {_tests(sweep)} comparisons (Holm)"
    name = point_name(sweep, point)
    return f"Best {sweep.measure} of {len(points)}: {score} with {name}; SFT {sft}{_on(seeds, sweep)}{test}"


def _tests(sweep: Sweep) -> int:
    return sum(text.p_value(point.p_value) != text.NONE for point in sweep.points)


def _on(seeds: Sequence[int], sweep: Sweep) -> str:
    return f" (seed {_listed(seeds)})" if len(seeds) < len(sweep.seeds) else ""


def sentence(sweep: Sweep) -> str:
    """Say which points differ clearly from SFT, how high the best point scores, and which points lack seeds."""
    parts = []
    for outcome, words in OUTCOMES.items():
        named = [point_name(sweep, point) for point in sweep.points if point.outcome == outcome]
        if outcome == "level" and len(named) > MOST_LISTED:
            parts.append(f"{words} SFT at {len(named)} of {len(sweep.points)} points.")
        elif named:
            parts.append(f"{words} SFT at {', '.join(named)}.")
    highest = best(sweep)
    score, difference, *_ = numbers(highest)
    parts.append(f"Highest: {point_name(sweep, highest)} with {score}, {difference} from SFT.")
    if control := control_of(highest.jobs):
        over = " on average over its seeds" if len(highest.seeds) > 1 else ""
        parts.append(f"SFT's {control[0]} decoding alone gives {text.number(control[1])}{over}.")
    return " ".join([*parts, unequal_seeds(sweep)]).strip()


def unequal_seeds(sweep: Sweep) -> str:
    """Say which points lack seeds that others have; "" if none does."""
    all_seeds = set(sweep.seeds)
    lacking: dict[str, list[str]] = {}
    for point in sweep.points:
        if missing := sorted(all_seeds - set(point.seeds)):
            lacking.setdefault(_listed(missing), []).append(point_name(sweep, point))
    if not lacking:
        return ""
    _, shared = comparable(sweep.points)
    common = _listed(shared)
    on = f"compared on seed {common}, which all have" if shared else "no seed is common to all, so none are compared"
    groups = [
        f"{', '.join(names)} {'lack' if len(names) > 1 else 'lacks'} seed {seeds}" for seeds, names in lacking.items()
    ]
    return f"Points have different seeds ({on}): {'; '.join(groups)}."


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
