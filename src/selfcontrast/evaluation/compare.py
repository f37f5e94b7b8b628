"""Compare policies: means, paired differences and win rates, with intervals clustered by prompt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import pandas as pd
import pyarrow.parquet as pq

from selfcontrast.evaluation.evaluate import ANSWERS, LIKELIHOOD, Evaluation, NamedDecoding
from selfcontrast.evaluation.finite import check_finite
from selfcontrast.evaluation.statistics import (
    Interval,
    mean_interval,
    paired_difference,
    paired_permutation_test,
    rate_interval,
    win_rate,
)

BASELINE = "SFT"
EXAMPLES = 20  # flagged prompts shown in the report


# The types of the dictionaries that are written to result.json and read back.


class Bounds(TypedDict):
    """An `Interval` in JSON."""

    estimate: float
    low: float
    high: float
    n: int
    clusters: int
    confidence: float


class Paired(TypedDict):
    """A difference from the baseline, paired by prompt, and its p-value."""

    difference: Bounds
    p_value: float


class AgainstBest(Paired):
    """A difference from the baseline, with the baseline at its best decoding."""

    decoding: str


class Row(TypedDict):
    """The numbers of one system at one decoding.

    Attributes:
        nll: mean -log p of a response, in nats. At temperature 1 and top_p 1 it estimates the policy's entropy.
        tokens: mean tokens of a response.
        difference, p_value, win_rate, against_best: comparisons with the baseline; absent from the baseline's rows.
    """

    system: str
    decoding: str
    temperature: float
    mean: Bounds
    nll: float
    tokens: float
    difference: NotRequired[Bounds]
    p_value: NotRequired[float]
    win_rate: NotRequired[Bounds]
    against_best: NotRequired[AgainstBest]


class CategoryRow(TypedDict):
    """A system's mean in a category of prompts, at the first decoding."""

    system: str
    category: str
    mean: Bounds


class LikelihoodRow(TypedDict):
    """A system's mean log-probability per target token, in nats."""

    system: str
    log_prob_per_token: Bounds


class FlaggedPrompt(TypedDict):
    """A prompt that resembles a training prompt; `match` is that training prompt."""

    prompt: str
    match: str
    containment: float | None
    similarity: float | None


class Contaminated(TypedDict):
    """The benchmark's prompts that resemble a training prompt.

    Attributes:
        prompts, flagged: number of all prompts, and of flagged prompts.
        examples: some flagged prompts.
        without: the rows at the first decoding, without the flagged prompts; empty if none or all are flagged.
    """

    benchmark: str
    prompts: int
    flagged: int
    examples: list[FlaggedPrompt]
    without: list[Row]


class Comparison(TypedDict):
    """The comparison of a run's systems.

    Attributes:
        measure: "score" if a verifier graded the answers; otherwise "similarity", the cosine to the target, a proxy.
        rows: one per system and decoding.
        contamination: absent from results of early releases.
    """

    measure: str
    rows: list[Row]
    categories: list[CategoryRow]
    likelihood: list[LikelihoodRow]
    contamination: NotRequired[Contaminated]


def row_of(comparison: Comparison, system: str, decoding: str) -> Row:
    return next(r for r in comparison["rows"] if r["system"] == system and r["decoding"] == decoding)


def compare(
    systems: Mapping[str, Path], settings: Evaluation, overlaps: pd.DataFrame, baseline: str = BASELINE
) -> Comparison:
    """Compare systems.

    Args:
        systems: folders of the evaluate stage, by system name.
        overlaps: the table `contamination.FILE`, with the training prompt that each prompt resembles.
        baseline: the system that the others are paired with.
    """
    overlaps = overlaps[overlaps["benchmark"] == settings.split]  # each benchmark reports on its own questions
    answers = read_answers(systems)
    likelihood = {name: pq.read_table(folder / LIKELIHOOD).to_pandas() for name, folder in systems.items()}
    measure = measure_of(answers[baseline])
    options: dict[str, Any] = {
        "confidence": settings.confidence,
        "n_bootstrap": settings.n_bootstrap,
        "seed": settings.seed,
    }
    rows = _rows(answers, settings.named_decodings, measure, options, baseline)
    first_decoding = settings.headline_decoding
    categories = [
        CategoryRow(system=name, category=str(category), mean=mean_of(part, measure, options))
        for name in systems
        for category, part in dialogues(answers[name], first_decoding, measure).groupby("category")
        if category
    ]
    per_token = [
        LikelihoodRow(system=name, log_prob_per_token=_per_token(frame, options)) for name, frame in likelihood.items()
    ]
    contamination = _contamination(overlaps)
    flagged = set(overlaps.loc[overlaps["flagged"], "id"])
    if 0 < len(flagged) < len(overlaps):
        clean = {name: frame[~frame["id"].isin(flagged)] for name, frame in answers.items()}
        contamination["without"] = _rows(clean, settings.named_decodings[:1], measure, options, baseline)
    return Comparison(
        measure=measure, rows=rows, categories=categories, likelihood=per_token, contamination=contamination
    )


def by_prompt(systems: Mapping[str, Path], settings: Evaluation) -> dict[str, Any]:
    """Return each prompt's values, which comparisons of several jobs need.

    `ids` are the sorted prompt ids. `means` holds, by system and decoding, each prompt's mean over its samples, in the
    order of `ids`.
    """
    answers = read_answers(systems)
    first_system = next(iter(answers.values()))
    measure = measure_of(first_system)

    def means(frame: pd.DataFrame, decoding: str) -> pd.Series:
        return dialogues(frame, decoding, measure).groupby("id")["value"].mean().sort_index()

    by_system = {
        name: {decoding.name: means(frame, decoding.name).round(6).tolist() for decoding in settings.named_decodings}
        for name, frame in answers.items()
    }
    return {"ids": sorted(first_system["id"].unique().tolist()), "means": by_system}


def read_answers(systems: Mapping[str, Path]) -> dict[str, pd.DataFrame]:
    """Read the answers of each system. For a number that is not finite, raise a `UserError` that names the example."""
    answers = {}
    for name, folder in systems.items():
        frame = answers[name] = pd.read_parquet(folder / ANSWERS)
        for column in ("log_prob", measure_of(frame)):
            check_finite(f"{folder / ANSWERS}: the {column} of the answer", frame["id"], frame[column])
    return answers


def measure_of(frame: pd.DataFrame) -> str:
    return "score" if "score" in frame else "similarity"


def _rows(
    answers: Mapping[str, pd.DataFrame],
    decodings: Sequence[NamedDecoding],
    measure: str,
    options: dict[str, Any],
    baseline: str,
) -> list[Row]:
    base = {decoding.name: dialogues(answers[baseline], decoding.name, measure) for decoding in decodings}
    best_decoding = max(base, key=lambda name: float(base[name]["value"].mean()))
    rows = []
    for decoding in decodings:
        for system, frame in answers.items():
            scored = dialogues(frame, decoding.name, measure)
            row = Row(
                system=system,
                decoding=decoding.name,
                temperature=decoding.temperature,
                mean=mean_of(scored, measure, options),
                # At temperature 1 and top_p 1, this is an unbiased estimate of the policy's entropy.
                nll=float(-scored["log_prob"].mean()),
                tokens=float(scored["tokens"].mean()),
            )
            if system != baseline:
                same_decoding = _paired(scored, base[decoding.name], options)
                row["difference"], row["p_value"] = same_decoding["difference"], same_decoding["p_value"]
                row["win_rate"] = _win_rate(scored, base[decoding.name], options)
                row["against_best"] = AgainstBest(
                    decoding=best_decoding, **_paired(scored, base[best_decoding], options)
                )
            rows.append(row)
    return rows


def dialogues(answers: pd.DataFrame, decoding: str, measure: str) -> pd.DataFrame:
    """Combine the turns of each dialogue: return one row per prompt and sample, in the same order for every system."""
    chosen = answers[answers["decoding"] == decoding]
    grouped = chosen.groupby(["id", "sample"], sort=True)
    return grouped.agg(
        value=(measure, "mean"),
        category=("category", "first"),
        tokens=("tokens", "sum"),
        log_prob=("log_prob", "sum"),
    ).reset_index()


def bounds_of(interval: Interval) -> Bounds:
    return cast("Bounds", dict(vars(interval)))


def mean_of(scored: pd.DataFrame, measure: str, options: dict[str, Any]) -> Bounds:
    """Return the mean with its interval, which for scores in [0, 1] has a width even if all scores are equal."""
    if measure == "score":
        return bounds_of(rate_interval(scored["value"], scored["id"], confidence=options["confidence"]))
    return bounds_of(mean_interval(scored["value"], scored["id"], **options))


def _win_rate(system: pd.DataFrame, base: pd.DataFrame, options: dict[str, Any]) -> Bounds:
    paired = system.merge(base, on=["id", "sample"], suffixes=("", "_base"))
    wins = (paired["value"] > paired["value_base"]) + 0.5 * (paired["value"] == paired["value_base"])
    return bounds_of(win_rate(wins, paired["id"], confidence=options["confidence"]))


def _paired(system: pd.DataFrame, base: pd.DataFrame, options: dict[str, Any]) -> Paired:
    """Return the difference from the baseline, paired by prompt, and its p-value.

    SFT's best decoding is chosen on the same prompts, which favours SFT a little. So gains over it are a little
    understated, and losses a little overstated.
    """
    paired = (system["value"], base["value"], system["id"], base["id"])
    test_options = {name: value for name, value in options.items() if name != "confidence"}
    difference = bounds_of(paired_difference(*paired, **options))
    return Paired(difference=difference, p_value=paired_permutation_test(*paired, **test_options))


def _contamination(overlaps: pd.DataFrame) -> Contaminated:
    flagged = overlaps[overlaps["flagged"]]
    examples = flagged[["prompt", "match", "containment", "similarity"]].head(EXAMPLES).astype(object)
    return {
        "benchmark": ", ".join(dict.fromkeys(overlaps["benchmark"])),
        "prompts": len(overlaps),
        "flagged": len(flagged),
        "examples": cast("list[FlaggedPrompt]", examples.where(examples.notna(), None).to_dict("records")),
        "without": [],
    }


def _per_token(frame: pd.DataFrame, options: dict[str, Any]) -> Bounds:
    per_token = frame["log_prob"] / frame["tokens"]
    empty = Interval(float("nan"), float("nan"), float("nan"), 0, 0, options["confidence"])
    return bounds_of(mean_interval(per_token, frame["id"], **options) if len(frame) else empty)
