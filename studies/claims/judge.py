"""The paper's claims, each with its measured effect and a verdict, from the results of several methods and seeds.

An effect is a mean over seeds and prompts of a contrast between methods that share the seed's fine-tuned model; its
interval is for other seeds and other prompts (`statistics.crossed`). The rule, the same for every claim:

- *not supported*: the interval's upper end is below `MARGIN`: a relevant effect is excluded, even if a smaller one is
  clear;
- *supported*: not so, the effect is above 0, and its p-value, corrected by Holm for the number of claims tested, is
  below 1 - level (5% at the usual level of 95%);
- *inconclusive*: neither. With one seed nothing is concluded, nor from numbers that do not vary: they
  cannot tell how much another seed or other prompts would differ.

The score is a verifier's. Similarity to the target is what the filter selects by, so nothing is claimed by it.
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

MARGIN = 0.01  # the smallest relevant effect, for scores in [0, 1]
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"

# Methods by the names that conf/method gives them.
NO_FILTER, AT_RANDOM, DPO_STD, CONTINUED = "no filter", "random negatives", "DPO_std", "SFT continued"
EQUAL_TOKENS = "K=1, tokens of the largest K"
SHARED = ("data", "model", "sft", "adapter", "evaluation")  # jobs that differ in one are different experiments


@dataclass(frozen=True)
class Arm:
    """A method with its K, answering in one way."""

    method: str
    k: int
    decoding: str

    @property
    def name(self) -> str:
        return self.method if self.method in (BASELINE, DPO_STD, CONTINUED) else f"{self.method} K={self.k}"


@dataclass(frozen=True)
class Claim:
    """Attributes:
    claim: the claim in words.
    contrast: the subtraction in words.
    effect: effect in units of the score.
    p_holm: corrected for the claims of its experiment.
    verdict: one of the three.
    """

    claim: str
    contrast: str
    effect: CrossedMean
    p_holm: float
    verdict: str


class Experiment:
    """The results that share data, base model, fine-tuning and evaluation: contrasts are made within them.

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
        """The numbers of negatives (K) with results of the method itself."""
        return sorted({r.negatives for r in self.results if method(r) == OURS})

    @property
    def seeds(self) -> list[int]:
        return sorted({r.seed for r in self.results})

    @property
    def arms(self) -> list[Arm]:
        """The fine-tuned model first, the method by K, then the others; at the first decoding."""
        found = {(method(r), r.negatives): None for r in self.results if method(r) in r.prompts["means"]}
        first = self.decodings[0]
        return [Arm(BASELINE, 0, first), *(Arm(name, k, first) for name, k in found)]

    def of(self, arm: Arm) -> dict[int, "Result"]:
        """Return the results that contain the arm, by seed."""
        own = [r for r in self.results if arm.method == BASELINE or (method(r), r.negatives) == (arm.method, arm.k)]
        return {r.seed: r for r in reversed(own)}  # for the fine-tuned model, the first of each seed

    def contrast(self, weights: Mapping[Arm, float]) -> Floats | None:
        """sum_a w_a score_a by seed and prompt, [S, P], over the seeds that have all arms; None if no seed does."""
        found = {arm: self.of(arm) for arm in weights}
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in found.values())))
        if not seeds:
            return None
        table = [sum(w * _scores(found[arm][seed], arm) for arm, w in weights.items()) for seed in seeds]
        return np.round(np.array(table), 12)  # equal scores differ by nothing, and not by rounding

    def mean(self, weights: Mapping[Arm, float]) -> CrossedMean | None:
        table = self.contrast(weights)
        return None if table is None else crossed_mean(table, self.confidence)


def experiments(results: Sequence["Result"]) -> list[Experiment]:
    """Results by what they share, the largest first; without those of which `ambiguities` tells."""
    kept = [group for group in _groups(results) if not _ambiguity(group)]
    return [Experiment(group) for group in sorted(kept, key=len, reverse=True)]


def ambiguities(results: Sequence["Result"]) -> list[str]:
    """Why experiments have no claims: several settings for a method, or several results for an arm, K and seed."""
    return [why for group in _groups(results) if (why := _ambiguity(group))]


def _groups(results: Sequence["Result"]) -> list[list["Result"]]:
    """Results whose prompts a verifier scored one by one, by what they share."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.prompts and result.comparison["measure"] == "score":
            own = [result.config.get(name) for name in SHARED]
            own += [(result.config.get("hardware") or {}).get("precision"), result.prompts["ids"]]
            groups.setdefault(json.dumps(own, sort_keys=True, default=str), []).append(result)
    return [_distinct(group) for group in groups.values()]


def _ambiguity(group: Sequence["Result"]) -> str:
    """Say why a result is ambiguous or unusable; "" if it is clear."""
    for result in group:
        means = [np.array(own, dtype=np.float64) for ways in result.prompts["means"].values() for own in ways.values()]
        if not all(np.isfinite(own).all() for own in means):
            return f"{method(result)} K={result.negatives}, seed {result.seed} has stored scores that are not numbers"
    configs = {str(i): {n: v for n, v in r.config.items() if n != "hardware"} for i, r in enumerate(group)}
    settings: dict[str, set[str]] = {}
    for i, variant in variants(configs).items():
        settings.setdefault(method(group[int(i)]), set()).add(variant)
    for name, own in settings.items():
        if len(own) > 1:
            return f"{name} was run with several settings ({'; '.join(sorted(own))})"
    for (name, k, seed), count in Counter((method(r), r.negatives, r.seed) for r in group).items():
        if count > 1:
            return f"{name} has {count} results for K={k} and seed {seed}"
    return ""


def _distinct(results: Sequence["Result"]) -> list["Result"]:
    """Return the results without repetitions: the same method, K, seed and scores as an earlier one."""
    found: list[Result] = []
    for one in results:
        if all(
            (method(one), one.negatives, one.seed, one.prompts) != (method(r), r.negatives, r.seed, r.prompts)
            for r in found
        ):
            found.append(one)
    return found


def claims(experiment: Experiment) -> list[Claim]:
    """Return the claims for which the experiment has all methods."""
    found = []
    for words, make in CLAIMS:
        if made := make(experiment):
            contrast, weights = made
            if (effect := experiment.mean(weights)) is not None:
                found.append((words, contrast, effect))
    p_values = np.array([effect.p_value for _, _, effect in found])
    known = np.isfinite(p_values)
    p_values[known] = holm(p_values[known])
    return [
        Claim(words, contrast, effect, float(p), verdict(effect, float(p)))
        for (words, contrast, effect), p in zip(found, p_values, strict=True)
    ]


def verdict(effect: CrossedMean, p_holm: float) -> str:
    """Judge an effect by the rule above."""
    if effect.seeds < 2 or not math.isfinite(effect.high):
        return INCONCLUSIVE
    if effect.high < MARGIN:
        return NOT_SUPPORTED
    return SUPPORTED if effect.estimate > 0 and p_holm < 1 - effect.confidence else INCONCLUSIVE


def method(result: "Result") -> str:
    return str(result.config.get("label", OURS))


def _scores(result: "Result", arm: Arm) -> Floats:
    return np.array(result.prompts["means"][arm.method][arm.decoding], dtype=np.float64)


# ---- the claims: each a contrast in words and as weights of methods, or None if a method is missing

Contrast = tuple[str, dict[Arm, float]]


def _against(experiment: Experiment, other: str, other_k: int, decoding: str | None = None) -> Contrast | None:
    """Return the contrast of the method at its largest K minus another method."""
    if not experiment.ks:
        return None
    way = decoding or experiment.decodings[0]
    ours, theirs = Arm(OURS, experiment.ks[-1], way), Arm(other, other_k, way)
    if not experiment.of(theirs):
        return None
    return f"{ours.name} minus {theirs.name}, at {way}", {ours: 1.0, theirs: -1.0}


def _k_of(experiment: Experiment, name: str) -> int:
    """Return the largest K of another method; 0 if it has none."""
    return max((r.negatives for r in experiment.results if method(r) == name), default=0)


def _named(name: str) -> Callable[[Experiment], Contrast | None]:
    return lambda experiment: _against(experiment, name, _k_of(experiment, name))


def _sft(experiment: Experiment) -> Contrast | None:
    return _against(experiment, BASELINE, 0)


def _sharpest(experiment: Experiment) -> Contrast | None:
    """Return the contrast at the sharpest decoding, where a sharper policy has no advantage."""
    sharpest = min(experiment.decodings, key=lambda name: experiment.temperature[name])
    return None if sharpest == experiment.decodings[0] else _against(experiment, BASELINE, 0, sharpest)


def _rise(experiment: Experiment) -> Contrast | None:
    """Return the rise from the smallest to the largest K along the least-squares line of score on log2 K."""
    ks = experiment.ks
    if len(ks) < 2:
        return None
    x = np.log2(ks) - np.log2(ks).mean()
    slope = x / (x @ x) * (math.log2(ks[-1]) - math.log2(ks[0]))
    way = experiment.decodings[0]
    weights = {Arm(OURS, k, way): float(w) for k, w in zip(ks, slope, strict=True)}
    return f"rise from K={ks[0]} to K={ks[-1]} along a line in log K, at {way}", weights


def _same_k(name: str) -> Callable[[Experiment], Contrast | None]:
    """Return the contrast of the method minus another, at the largest K that both have."""

    def contrast(experiment: Experiment) -> Contrast | None:
        common = set(experiment.ks) & {r.negatives for r in experiment.results if method(r) == name}
        if not common:
            return None
        way = experiment.decodings[0]
        ours, theirs = Arm(OURS, max(common), way), Arm(name, max(common), way)
        return f"{ours.name} minus {theirs.name}, at {way}", {ours: 1.0, theirs: -1.0}

    return contrast


CLAIMS: list[tuple[str, Callable[[Experiment], Contrast | None]]] = [
    ("Self-Contrast beats SFT", _sft),
    ("Self-Contrast beats standard DPO", _named(DPO_STD)),
    ("it grows with K", _rise),
    ("the filter helps", _same_k(NO_FILTER)),
    ("control: it is not merely fewer candidates", _same_k(AT_RANDOM)),
    ("control: it is not merely more training", _named(CONTINUED)),
    ("control: it is not merely sharper", _sharpest),
    ("control: more negatives are not merely more tokens on the same prompts", _named(EQUAL_TOKENS)),
]


def titles(found: Sequence[Experiment]) -> list[str]:
    """Per experiment the settings in which it differs from the others: "data.noise=0.0"; "" for a single one."""
    flat = [dict(_flatten({n: one.results[0].config.get(n) for n in SHARED})) for one in found]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    differ = [key for key in keys if len({str(settings.get(key)) for settings in flat}) > 1]
    return [", ".join(f"{key}={settings.get(key)}" for key in differ) for settings in flat]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, own in value.items():
        found += _flatten(own, f"{prefix}{key}.") if isinstance(own, Mapping) else [(f"{prefix}{key}", own)]
    return found
