"""Policies side by side: means, paired differences and win rates, each with an interval clustered by prompt."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from selfcontrast.evaluation.scores import ANSWERS, LIKELIHOOD, Evaluation
from selfcontrast.evaluation.statistics import (
    Interval,
    mean_interval,
    paired_difference,
    paired_permutation_test,
    win_rate,
)

BASELINE = "SFT"


@dataclass(frozen=True)
class Comparison:
    """The numbers of a run.

    Attributes:
        measure: "score" where a verifier graded, else "similarity" (to the target's embedding: a proxy).
        rows: one per system and decoding: system, decoding, mean, difference from SFT at the same decoding, its
            p-value, win rate over SFT, entropy (nats per response), tokens.
        categories: per system and category, at the first decoding, the mean.
        likelihood: per system the targets' mean log-probability per token.
    """

    measure: str
    rows: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    likelihood: list[dict[str, Any]]

    def row(self, system: str, decoding: str) -> dict[str, Any]:
        return next(r for r in self.rows if r["system"] == system and r["decoding"] == decoding)


def compare(systems: Mapping[str, Path], settings: Evaluation) -> Comparison:
    """Compares score folders by system name; `BASELINE` among them is what the others are paired with."""
    answers = {name: pd.read_parquet(folder / ANSWERS) for name, folder in systems.items()}
    likelihood = {name: pq.read_table(folder / LIKELIHOOD).to_pandas() for name, folder in systems.items()}
    measure = "score" if "score" in answers[BASELINE] else "similarity"
    options: dict[str, Any] = {"level": settings.level, "resamples": settings.resamples, "seed": settings.seed}
    rows = []
    for way in settings.ways:
        base = _dialogues(answers[BASELINE], way.name, measure)
        for name in systems:
            own = _dialogues(answers[name], way.name, measure)
            row = {
                "system": name,
                "decoding": way.name,
                "temperature": way.temperature,
                **_absolute(own, options),
            }
            rows.append(row | (_relative(own, base, options) if name != BASELINE else {}))
    first = settings.ways[0].name
    categories = [
        {
            "system": name,
            "category": category,
            "mean": asdict(mean_interval(part["value"], part["id"], **options)),
        }
        for name in systems
        for category, part in _dialogues(answers[name], first, measure).groupby("category")
        if category
    ]
    per_token = [{"system": name, **_likelihood(frame, options)} for name, frame in likelihood.items()]
    return Comparison(measure, rows, categories, per_token)


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


def _absolute(own: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "mean": asdict(mean_interval(own["value"], own["id"], **options)),
        # Sampled at temperature 1, -log p is an unbiased estimate of the policy's entropy; else a mere description.
        "surprise": float(-own["log_prob"].mean()),
        "tokens": float(own["tokens"].mean()),
    }


def _relative(own: pd.DataFrame, base: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    both = own.merge(base, on=["id", "sample"], suffixes=("", "_base"))
    wins = (both["value"] > both["value_base"]) + 0.5 * (both["value"] == both["value_base"])
    paired = (own["value"], base["value"], own["id"], base["id"])
    tested = {name: value for name, value in options.items() if name != "level"}
    return {
        "difference": asdict(paired_difference(*paired, **options)),
        "p_value": paired_permutation_test(*paired, **tested),
        "win_rate": asdict(win_rate(wins, both["id"], **options)),
    }


def _likelihood(frame: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    per_token = frame["log_prob"] / frame["tokens"]
    empty = Interval(float("nan"), float("nan"), float("nan"), 0, 0, options["level"])
    return {
        "log_prob_per_token": asdict(mean_interval(per_token, frame["id"], **options) if len(frame) else empty),
    }
