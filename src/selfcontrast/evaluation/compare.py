"""Policies side by side: means, paired differences and win rates, each with an interval clustered by prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from selfcontrast.evaluation.finite import check_finite
from selfcontrast.evaluation.scores import ANSWERS, LIKELIHOOD, Decoded, Evaluation
from selfcontrast.evaluation.statistics import (
    Interval,
    mean_interval,
    paired_difference,
    paired_permutation_test,
    rate_interval,
    win_rate,
)

BASELINE = "SFT"
EXAMPLES = 20  # of flagged prompts, shown in the report


@dataclass(frozen=True)
class Comparison:
    """The numbers of a run.

    Attributes:
        measure: "score" where a verifier graded, else "similarity" (to the target's embedding: a proxy).
        rows: one per system and decoding: system, decoding, mean, difference from SFT at the same decoding, its
            p-value, win rate over SFT, difference from SFT at whatever decoding suits SFT best, entropy (nats per
            response), tokens.
        categories: per system and category, at the first decoding, the mean.
        likelihood: per system the targets' mean log-probability per token.
        contamination: of the `prompts` of `benchmark` how many are `flagged` as resembling a training prompt, some of
            them (`examples`), and the rows of the first decoding `without` them; none where none is flagged, or all.
    """

    measure: str
    rows: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    likelihood: list[dict[str, Any]]
    contamination: dict[str, Any]

    def row(self, system: str, decoding: str) -> dict[str, Any]:
        return next(r for r in self.rows if r["system"] == system and r["decoding"] == decoding)


def compare(
    systems: Mapping[str, Path], settings: Evaluation, seen: pd.DataFrame, baseline: str = BASELINE
) -> Comparison:
    """Compares score folders by system name; `baseline` among them is what the others are paired with.

    `seen` tells which prompts resemble a training prompt: the columns of `contamination.FILE`.
    """
    seen = seen[seen["benchmark"] == settings.split]  # benchmarks with questions of their own tell it themselves
    answers = _answers(systems)
    likelihood = {name: pq.read_table(folder / LIKELIHOOD).to_pandas() for name, folder in systems.items()}
    measure = _measure(answers[baseline])
    options: dict[str, Any] = {"level": settings.level, "resamples": settings.resamples, "seed": settings.seed}
    rows = _rows(answers, settings.ways, measure, options, baseline)
    first = settings.ways[0].name
    categories = [
        {
            "system": name,
            "category": category,
            "mean": _mean(part, measure, options),
        }
        for name in systems
        for category, part in _dialogues(answers[name], first, measure).groupby("category")
        if category
    ]
    per_token = [{"system": name, **_likelihood(frame, options)} for name, frame in likelihood.items()]
    contamination = _contamination(seen)
    flagged = set(seen.loc[seen["flagged"], "id"])
    if 0 < len(flagged) < len(seen):
        clean = {name: frame[~frame["id"].isin(flagged)] for name, frame in answers.items()}
        contamination["without"] = _rows(clean, settings.ways[:1], measure, options, baseline)
    return Comparison(measure, rows, categories, per_token, contamination)


def by_prompt(systems: Mapping[str, Path], settings: Evaluation) -> dict[str, Any]:
    """What a comparison over several jobs is made from: `ids` of the prompts, sorted, and per system and decoding the
    mean over a prompt's samples, in their order: `means`."""
    answers = _answers(systems)
    first = next(iter(answers.values()))
    measure = _measure(first)

    def means(frame: pd.DataFrame, decoding: str) -> pd.Series:
        return _dialogues(frame, decoding, measure).groupby("id")["value"].mean().sort_index()

    found = {
        name: {way.name: means(frame, way.name).round(6).tolist() for way in settings.ways}
        for name, frame in answers.items()
    }
    return {"ids": sorted(first["id"].unique().tolist()), "means": found}


def _answers(systems: Mapping[str, Path]) -> dict[str, pd.DataFrame]:
    """Read the answers of each system. Raises `UserError` for a stored number that is none, with its example's id."""
    found = {}
    for name, folder in systems.items():
        frame = found[name] = pd.read_parquet(folder / ANSWERS)
        for column in ("log_prob", _measure(frame)):
            check_finite(f"{folder / ANSWERS}: the {column} of the answer", frame["id"], frame[column])
    return found


def _measure(frame: pd.DataFrame) -> str:
    return "score" if "score" in frame else "similarity"


def _rows(
    answers: Mapping[str, pd.DataFrame],
    ways: Sequence[Decoded],
    measure: str,
    options: dict[str, Any],
    baseline: str,
) -> list[dict[str, Any]]:
    base = {way.name: _dialogues(answers[baseline], way.name, measure) for way in ways}
    best = max(base, key=lambda name: float(base[name]["value"].mean()))
    rows = []
    for way in ways:
        for system, frame in answers.items():
            own = _dialogues(frame, way.name, measure)
            row = {
                "system": system,
                "decoding": way.name,
                "temperature": way.temperature,
                **_absolute(own, measure, options),
            }
            if system != baseline:
                row |= _relative(own, base[way.name], options)
                row["against_best"] = {"decoding": best, **_paired(own, base[best], options)}
            rows.append(row)
    return rows


def _dialogues(answers: pd.DataFrame, decoding: str, measure: str) -> pd.DataFrame:
    """One row per prompt and sample: the mean over its turns. Sorted, so that systems pair up."""
    chosen = answers[answers["decoding"] == decoding]
    grouped = chosen.groupby(["id", "sample"], sort=True)
    return grouped.agg(
        value=(measure, "mean"),
        category=("category", "first"),
        tokens=("tokens", "sum"),
        log_prob=("log_prob", "sum"),
    ).reset_index()


def _mean(own: pd.DataFrame, measure: str, options: dict[str, Any]) -> dict[str, Any]:
    """A score is in [0, 1], where an interval has width even if all answers are right."""
    if measure == "score":
        return asdict(rate_interval(own["value"], own["id"], level=options["level"]))
    return asdict(mean_interval(own["value"], own["id"], **options))


def _absolute(own: pd.DataFrame, measure: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "mean": _mean(own, measure, options),
        # Sampled at temperature 1, -log p is an unbiased estimate of the policy's entropy; else a mere description.
        "surprise": float(-own["log_prob"].mean()),
        "tokens": float(own["tokens"].mean()),
    }


def _relative(own: pd.DataFrame, base: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    both = own.merge(base, on=["id", "sample"], suffixes=("", "_base"))
    wins = (both["value"] > both["value_base"]) + 0.5 * (both["value"] == both["value_base"])
    return {**_paired(own, base, options), "win_rate": asdict(win_rate(wins, both["id"], level=options["level"]))}


def _paired(own: pd.DataFrame, base: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    """The mean difference by prompt. SFT's best decoding is chosen on the same prompts, which flatters it a little: a
    gain over it stands, a loss against it is rather overstated."""
    paired = (own["value"], base["value"], own["id"], base["id"])
    tested = {name: value for name, value in options.items() if name != "level"}
    return {
        "difference": asdict(paired_difference(*paired, **options)),
        "p_value": paired_permutation_test(*paired, **tested),
    }


def _contamination(seen: pd.DataFrame) -> dict[str, Any]:
    flagged = seen[seen["flagged"]]
    shown = flagged[["prompt", "match", "containment", "similarity"]].head(EXAMPLES).astype(object)
    return {
        "benchmark": ", ".join(dict.fromkeys(seen["benchmark"])),
        "prompts": len(seen),
        "flagged": len(flagged),
        "examples": shown.where(shown.notna(), None).to_dict("records"),
        "without": [],
    }


def _likelihood(frame: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    per_token = frame["log_prob"] / frame["tokens"]
    empty = Interval(float("nan"), float("nan"), float("nan"), 0, 0, options["level"])
    return {
        "log_prob_per_token": asdict(mean_interval(per_token, frame["id"], **options) if len(frame) else empty),
    }
