"""Judge the paper's claims: measure each effect from the results of several methods and seeds, and give a verdict.

An effect is a mean, over seeds and prompts, of a contrast between conditions (`Condition`) that share the seed's
fine-tuned model. Its interval generalises to other seeds and other prompts (`statistics.crossed`). One rule holds for
every claim:

- *not supported*: the interval's upper end is below `MARGIN`. This excludes an effect that is large enough to count,
  even if a smaller effect is clear.
- *supported*: the upper end is not below `MARGIN`, the effect is above 0, and its p-value is below 1 - confidence (5%
  at the usual 95%). The p-value has Holm's correction for the number of claims tested.
- *inconclusive*: every other claim. Results of one seed, or numbers that do not vary at all, are always inconclusive:
  they do not show how much another seed or other prompts would differ.

Scores come from a verifier. Similarity to the target proves nothing, because the filter selects by similarity.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selfcontrast.evaluation.statistics import CrossedMean, crossed_mean, holm
from selfcontrast.evaluation.statistics.clusters import Floats
from selfcontrast.report.sweep import variants
from selfcontrast.report.verdict import BASELINE, OURS

if TYPE_CHECKING:
    from selfcontrast.results import Result

MARGIN = 0.01  # the smallest effect that counts; scores range from 0 to 1
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"

# Labels of methods in conf/method.
NO_FILTER, AT_RANDOM, DPO_STD, CONTINUED = "no filter", "random negatives", "DPO_std", "SFT continued"
EQUAL_TOKENS = "K=1, tokens of the largest K"
SHARED = ("data", "model", "sft", "adapter", "evaluation")  # jobs of one experiment agree in these


@dataclass(frozen=True)
class Condition:
    """A method with its K, at one decoding."""

    method: str
    k: int
    decoding: str

    @property
    def name(self) -> str:
        return self.method if self.method in (BASELINE, DPO_STD, CONTINUED) else f"{self.method} K={self.k}"


@dataclass(frozen=True)
class Claim:
    """A judged claim.

    Attributes:
        claim: the claim in words.
        contrast: the compared conditions in words.
        effect: in units of the score.
        p_holm: p-value with Holm's correction for the claims of its experiment.
        verdict: `SUPPORTED`, `NOT_SUPPORTED` or `INCONCLUSIVE`.
    """

    claim: str
    contrast: str
    effect: CrossedMean
    p_holm: float
    verdict: str


class Experiment:
    """The results that share data, base model, fine-tuning and evaluation. A contrast compares only such results.

    Args:
        results: results of any methods and seeds, one for each method, K and seed.
    """

    def __init__(self, results: Sequence["Result"]) -> None:
        self.results = sorted(results, key=lambda r: (method(r) != OURS, method(r), r.negatives, r.seed))
        self.rows = self.results[0].comparison["rows"]
        self.confidence = float(self.rows[0]["mean"]["confidence"])
        self.decodings = list(dict.fromkeys(row["decoding"] for row in self.rows))
        self.temperature = {row["decoding"]: float(row["temperature"]) for row in self.rows}

    @property
    def ks(self) -> list[int]:
        """Return the values of K with results of Self-Contrast."""
        return sorted({r.negatives for r in self.results if method(r) == OURS})

    @property
    def seeds(self) -> list[int]:
        return sorted({r.seed for r in self.results})

    @property
    def conditions(self) -> list[Condition]:
        """Return the conditions at the first decoding: the fine-tuned model, Self-Contrast by K, then other methods."""
        policies = {(method(r), r.negatives): None for r in self.results if method(r) in r.prompts["means"]}
        first = self.decodings[0]
        return [Condition(BASELINE, 0, first), *(Condition(name, k, first) for name, k in policies)]

    def results_of(self, condition: Condition) -> dict[int, "Result"]:
        """Return the results that have the condition, by seed."""
        chosen = (condition.method, condition.k)
        results = [r for r in self.results if condition.method == BASELINE or (method(r), r.negatives) == chosen]
        return {r.seed: r for r in reversed(results)}  # a seed's first result stands for its fine-tuned model

    def contrast(self, weights: Mapping[Condition, float]) -> Floats | None:
        """Return sum_c w_c score_c by seed and prompt, [S, P], over the seeds that have every condition.

        None if no seed has them all.
        """
        by_condition = {c: self.results_of(c) for c in weights}
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in by_condition.values())))
        if not seeds:
            return None
        table = [sum(w * _scores(by_condition[c][seed], c) for c, w in weights.items()) for seed in seeds]
        return np.round(np.array(table), 12)  # so that equal scores differ by exactly 0

    def mean(self, weights: Mapping[Condition, float]) -> CrossedMean | None:
        table = self.contrast(weights)
        return None if table is None else crossed_mean(table, self.confidence)


def experiments(results: Sequence["Result"]) -> list[Experiment]:
    """Group results into experiments, the largest first. Groups that `ambiguities` lists are left out."""
    kept = [group for group in _groups(results) if not _ambiguity(group)]
    return [Experiment(group) for group in sorted(kept, key=len, reverse=True)]


def ambiguities(results: Sequence["Result"]) -> list[str]:
    """Return why groups are left out: scores that are not finite, several settings of a method, or repeated results."""
    return [why for group in _groups(results) if (why := _ambiguity(group))]


def _groups(results: Sequence["Result"]) -> list[list["Result"]]:
    """Group the results that have a verifier's score per prompt by the settings that they share."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.prompts and result.comparison["measure"] == "score":
            shared = [result.config.get(name) for name in SHARED]
            shared += [(result.config.get("hardware") or {}).get("precision"), result.prompts["ids"]]
            groups.setdefault(json.dumps(shared, sort_keys=True, default=str), []).append(result)
    return [_distinct(group) for group in groups.values()]


def _ambiguity(group: Sequence["Result"]) -> str:
    """Return why the group has no clear result for some condition; "" if every condition has one."""
    for result in group:
        by_system = result.prompts["means"].values()
        scores = [np.array(values, dtype=np.float64) for means in by_system for values in means.values()]
        if not all(np.isfinite(values).all() for values in scores):
            return f"{method(result)} K={result.negatives}, seed {result.seed} has scores that are not finite numbers"
    configs = {str(i): {n: v for n, v in r.config.items() if n != "hardware"} for i, r in enumerate(group)}
    settings: dict[str, set[str]] = {}
    for i, variant in variants(configs).items():
        settings.setdefault(method(group[int(i)]), set()).add(variant)
    for name, different in settings.items():
        if len(different) > 1:
            return f"{name} was run with several settings ({'; '.join(sorted(different))})"
    for (name, k, seed), count in Counter((method(r), r.negatives, r.seed) for r in group).items():
        if count > 1:
            return f"{name} has {count} results for K={k} and seed {seed}"
    return ""


def _distinct(results: Sequence["Result"]) -> list["Result"]:
    """Drop results that repeat an earlier one's method, K, seed and scores."""
    kept: list[Result] = []
    for new in results:
        if all(
            (method(new), new.negatives, new.seed, new.prompts) != (method(r), r.negatives, r.seed, r.prompts)
            for r in kept
        ):
            kept.append(new)
    return kept


def claims(experiment: Experiment) -> list[Claim]:
    """Judge the claims that the experiment has the conditions for."""
    measured = []
    for claim, make_contrast in CLAIMS:
        if contrast := make_contrast(experiment):
            description, weights = contrast
            if (effect := experiment.mean(weights)) is not None:
                measured.append((claim, description, effect))
    p_values = np.array([effect.p_value for _, _, effect in measured])
    known = np.isfinite(p_values)
    p_values[known] = holm(p_values[known])
    return [
        Claim(claim, description, effect, float(p), verdict(effect, float(p)))
        for (claim, description, effect), p in zip(measured, p_values, strict=True)
    ]


def verdict(effect: CrossedMean, p_holm: float) -> str:
    """Judge an effect by the rule in this module's docstring."""
    if effect.seeds < 2 or not math.isfinite(effect.high):
        return INCONCLUSIVE
    if effect.high < MARGIN:
        return NOT_SUPPORTED
    return SUPPORTED if effect.estimate > 0 and p_holm < 1 - effect.confidence else INCONCLUSIVE


def method(result: "Result") -> str:
    return str(result.config.get("label", OURS))


def _scores(result: "Result", condition: Condition) -> Floats:
    return np.array(result.prompts["means"][condition.method][condition.decoding], dtype=np.float64)


# ---- contrasts: each function describes its contrast and returns weights of conditions; None if a condition is missing

Contrast = tuple[str, dict[Condition, float]]


def _against(experiment: Experiment, other: str, other_k: int, decoding: str | None = None) -> Contrast | None:
    """Subtract another method from Self-Contrast at its largest K."""
    if not experiment.ks:
        return None
    decoding = decoding or experiment.decodings[0]
    return _difference(experiment, Condition(OURS, experiment.ks[-1], decoding), Condition(other, other_k, decoding))


def _difference(experiment: Experiment, first: Condition, second: Condition) -> Contrast | None:
    """Subtract the second condition from the first."""
    if not experiment.results_of(second):
        return None
    return f"{first.name} minus {second.name}, at {first.decoding}", {first: 1.0, second: -1.0}


def _largest_k(experiment: Experiment, name: str) -> int:
    """Return the largest K of another method; 0 if it has no results."""
    return max((r.negatives for r in experiment.results if method(r) == name), default=0)


def _against_method(name: str) -> Callable[[Experiment], Contrast | None]:
    return lambda experiment: _against(experiment, name, _largest_k(experiment, name))


def _against_sft(experiment: Experiment) -> Contrast | None:
    return _against(experiment, BASELINE, 0)


def _against_sharpest_sft(experiment: Experiment) -> Contrast | None:
    """Compare with SFT at the sharpest decoding, where a sharper policy has no advantage."""
    sharpest = min(experiment.decodings, key=lambda name: experiment.temperature[name])
    return None if sharpest == experiment.decodings[0] else _against(experiment, BASELINE, 0, sharpest)


def _rise_with_k(experiment: Experiment) -> Contrast | None:
    """Return the rise from the smallest to the largest K along the least-squares line of score on log2 K."""
    ks = experiment.ks
    if len(ks) < 2:
        return None
    x = np.log2(ks) - np.log2(ks).mean()
    slope = x / (x @ x) * (math.log2(ks[-1]) - math.log2(ks[0]))
    decoding = experiment.decodings[0]
    weights = {Condition(OURS, k, decoding): float(w) for k, w in zip(ks, slope, strict=True)}
    return f"rise from K={ks[0]} to K={ks[-1]} along a line in log K, at {decoding}", weights


def _against_same_k(name: str) -> Callable[[Experiment], Contrast | None]:
    """Subtract another method at the largest K that both have."""

    def contrast(experiment: Experiment) -> Contrast | None:
        common = set(experiment.ks) & {r.negatives for r in experiment.results if method(r) == name}
        if not common:
            return None
        decoding = experiment.decodings[0]
        return _difference(experiment, *(Condition(label, max(common), decoding) for label in (OURS, name)))

    return contrast


CLAIMS: list[tuple[str, Callable[[Experiment], Contrast | None]]] = [
    ("Self-Contrast beats SFT", _against_sft),
    ("Self-Contrast beats standard DPO", _against_method(DPO_STD)),
    ("it grows with K", _rise_with_k),
    ("the filter helps", _against_same_k(NO_FILTER)),
    ("control: it is not merely fewer candidates", _against_same_k(AT_RANDOM)),
    ("control: it is not merely more training", _against_method(CONTINUED)),
    ("control: it is not merely sharper", _against_sharpest_sft),
    ("control: more negatives are not merely more tokens on the same prompts", _against_method(EQUAL_TOKENS)),
]


def titles(experiments: Sequence[Experiment]) -> list[str]:
    """Title experiments by the settings in which they differ ("data.noise=0.0"). The title of a single one is ""."""
    flat = [dict(_flatten({n: e.results[0].config.get(n) for n in SHARED})) for e in experiments]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    differ = [key for key in keys if len({str(settings.get(key)) for settings in flat}) > 1]
    return [", ".join(f"{key}={settings.get(key)}" for key in differ) for settings in flat]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, item in value.items():
        rows += _flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else [(f"{prefix}{key}", item)]
    return rows
