"""Say in one or two sentences what a run's numbers show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfcontrast.config import method_name
from selfcontrast.report.text import bounded, interval, number, p_equals, percent, percent_interval

if TYPE_CHECKING:
    from selfcontrast.evaluation.compare import Row
    from selfcontrast.results import Evaluated, Result

BASELINE, OURS = "SFT", "Self-Contrast"
PROXY = "similarity to the target's embedding: a proxy, not quality"
SIMILARITY = "has an embedding similarity to the target (a proxy, not quality) of"


@dataclass(frozen=True)
class Verdict:
    """A run's finding in words.

    Attributes:
        headline: the finding in a few words.
        sentence: the finding with its numbers.
        control: sentences on SFT at sharper decodings, on the policy against the best of them, and, if the measure is
            a proxy, on judges' win rates; "" if nothing of this was measured.
    """

    headline: str
    sentence: str
    control: str

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.sentence, self.control) if part)


def measure_name(result: "Result | Evaluated") -> str:
    """Return the name of the measure. A similarity is never called a score."""
    return "score" if result.comparison["measure"] == "score" else "similarity (proxy)"


def judge(result: "Result") -> Verdict:
    """Return the verdict: the policy against SFT at the first decoding, and against SFT's sharper decodings."""
    rows = result.comparison["rows"]
    base = next(row for row in rows if row["system"] == BASELINE)
    policy = policy_row(rows)
    if policy["system"] == BASELINE:
        unit = "scores" if result.comparison["measure"] == "score" else SIMILARITY
        return Verdict("SFT alone", f"At {base['decoding']} SFT {unit} {interval(base['mean'])}.", "")
    control = sharpest_control(rows)
    proxy = result.comparison["measure"] != "score"
    outcome = direction(policy["difference"], policy["p_value"])
    headline = {
        "better": "Better than SFT",
        "worse": "Worse than SFT",
        "level": "No clear difference from SFT",
    }[outcome]
    if proxy:
        headline = {
            "better": "Closer to the targets than SFT",
            "worse": "Farther from the targets than SFT",
        }.get(outcome, headline)
    if outcome == "better" and control and _mean(control) >= _mean(policy):
        headline += ", but no more than sharper sampling gives"
    judged = _win_rates(result, policy) if proxy else {}
    if proxy:
        headline += " (by a proxy)"
        headline += "".join(f"; {name} judges it {found}" for name, found in _contradictions(judged, outcome).items())
    rates = [f"The win rate over SFT in {name} is {percent_interval(rate)}." for name, rate in judged.items()]
    controls = " ".join(filter(None, (_control(base, policy, control, outcome), _best(base, policy), *rates)))
    return Verdict(headline, _sentence(result, base, policy, outcome), controls)


def contamination(result: "Result | Evaluated") -> str:
    """Say how many prompts resemble a training prompt, and the scores without them; "" if this was not checked."""
    overlap = result.comparison.get("contamination")
    if not overlap:
        return ""
    prompts = f"of {overlap['prompts']} {overlap['benchmark']} prompts"
    if not overlap["flagged"]:
        return f"Contamination: none {prompts} resembles a training prompt."
    share = percent(overlap["flagged"] / overlap["prompts"])
    resemble = "resembles" if overlap["flagged"] == 1 else "resemble"
    flagged = f"Contamination: {overlap['flagged']} {prompts} ({share}) {resemble} a training prompt"
    if not overlap["without"]:
        return f"{flagged}."
    scores = ", ".join(f"{row['system']} {interval(row['mean'])}" for row in overlap["without"])
    policy = policy_row(overlap["without"])
    if "difference" not in policy:
        return f"{flagged}; without them {scores}."
    difference = interval(policy["difference"], signed=True)
    return f"{flagged}; without them {scores}, difference {difference}, {p_equals(policy['p_value'])}."


def policy_row(rows: "list[Row]") -> "Row":
    """Return the row of the last iteration's policy at the first decoding; SFT's row if there is no policy."""
    return [row for row in rows if row["decoding"] == rows[0]["decoding"]][-1]


def direction(difference: Mapping[str, Any], p: float | None) -> str:
    """Return "better" or "worse" if the interval excludes 0 and the p-value is small enough, else "level"."""
    clear = bounded(difference) and difference["low"] * difference["high"] > 0
    if not clear or p is None or not p < 1 - difference["confidence"]:
        return "level"
    return "better" if difference["estimate"] > 0 else "worse"


def sharpest_control(rows: "list[Row]") -> "Row | None":
    """Return SFT's row at its best decoding among those sharper than the first; None if there is none."""
    return max(sharper_rows(rows), key=_mean, default=None)


def sharper_rows(rows: "list[Row]") -> "list[Row]":
    """Return SFT's rows at decodings sharper than the first."""
    sft = [row for row in rows if row["system"] == BASELINE]
    return [row for row in sft[1:] if row["temperature"] < sft[0]["temperature"]]


def _sentence(result: "Result", base: "Row", policy: "Row", outcome: str) -> str:
    scored = result.comparison["measure"] == "score"
    unit = "scores" if scored else SIMILARITY
    ends = {"better": "a clear gain", "worse": "a clear loss", "level": "no significant difference"}
    return (
        f"At {base['decoding']} {_method(result, policy)} (K={result.negatives}) {unit} {interval(policy['mean'])} "
        f"against SFT's {interval(base['mean'])}: difference {interval(policy['difference'], signed=True)}, "
        f"{p_equals(policy['p_value'])}, n = {policy['difference']['clusters']} prompts: {ends[outcome]}."
    )


def _method(result: "Result", policy: "Row") -> str:
    """Return the policy's name. If the paper's method was changed, say how."""
    system, label = policy["system"], str(result.config.get("label", ""))
    return method_name(result.config) + system.removeprefix(label) if label and system.startswith(label) else system


def _control(base: "Row", policy: "Row", control: "Row | None", outcome: str) -> str:
    if control is None:
        return ""
    alone = f"SFT's {control['decoding']} decoding alone gives {number(_mean(control))}"
    gain, sharper = _mean(policy) - _mean(base), _mean(control) - _mean(base)
    if sharper <= 0:
        return f"{alone}: sharper sampling does not help SFT" + (
            ", so it does not explain the gain." if outcome == "better" else "."
        )
    if outcome != "better":
        if bounded(base["mean"]) and _mean(control) <= base["mean"]["high"]:
            return f"{alone}: sharper sampling does not clearly help SFT either."
        return f"{alone}: sharper sampling helps ({number(sharper, signed=True)}), this training does not."
    if sharper >= gain:
        return f"{alone}: sharper sampling explains as much as the whole gain."
    return f"{alone}: sharper sampling explains at most {100 * sharper / gain:.0f}% of the gain."


def _best(base: "Row", policy: "Row") -> str:
    """Compare the policy with SFT at its best decoding; "" if that is the same decoding."""
    best = policy.get("against_best")
    if not best or best["decoding"] == base["decoding"]:
        return ""
    return (
        f"The difference of {policy['system']} at {policy['decoding']} from SFT at its best decoding "
        f"({best['decoding']}) is {interval(best['difference'], signed=True)}, {p_equals(best['p_value'])}."
    )


def _win_rates(result: "Result", policy: "Row") -> dict[str, Mapping[str, Any]]:
    """Return the policy's win rate over SFT by benchmark."""
    return {
        name: line["value"]
        for name, benchmark in result.benchmarks.items()
        for line in benchmark["lines"]
        if line["system"] == policy["system"] and line["what"] == f"win rate over {BASELINE}"
    }


def _contradictions(win_rates: Mapping[str, Mapping[str, Any]], outcome: str) -> dict[str, str]:
    """Return "better" or "worse" for each benchmark whose win rate is clear and does not agree with `outcome`."""
    found = {
        name: "better" if rate["low"] > 0.5 else "worse"
        for name, rate in win_rates.items()
        if bounded(rate) and not rate["low"] <= 0.5 <= rate["high"]
    }
    return {name: judged for name, judged in found.items() if judged != outcome}


def _mean(row: "Row") -> float:
    return float(row["mean"]["estimate"])
