from collections.abc import Callable
from dataclasses import replace

import pytest

from selfcontrast.report.verdict import contamination, judge
from selfcontrast.results import Result

Make = Callable[..., Result]


def test_verdict_of_a_gain_says_how_much_sharper_sampling_explains(make: Make) -> None:
    verdict = judge(make(sft=0.6, policy=0.7, control=0.65))
    assert verdict.headline == "Better than SFT"
    assert verdict.sentence == (
        "At T=1 Self-Contrast (K=4) scores 0.700 [0.650, 0.750] against SFT's 0.600 [0.550, 0.650]: "
        "difference +0.100 [+0.060, +0.140], p = 0.002, n = 20 prompts: a clear gain."
    )
    assert "T=0.7 decoding alone gives 0.650" in verdict.control
    assert "at most 50% of the gain" in verdict.control


def test_verdict_judges_the_last_iteration(make: Make) -> None:
    result = make(sft=0.6, policy=0.7, control=0.65)
    rows = []
    for row in result.comparison["rows"]:
        if row["system"] == "Self-Contrast":
            rows.append({**row, "system": "Self-Contrast iteration 1", "mean": {**row["mean"], "estimate": 0.123}})
        rows.append(row)
    verdict = judge(replace(result, comparison={**result.comparison, "rows": rows}))
    assert verdict == judge(result)


def test_verdict_without_a_policy_compares_nothing(make: Make) -> None:
    result = make(sft=0.6)
    measured = result.comparison["contamination"]
    sft_only = {**measured, "without": measured["without"][:1]}
    rows = [row for row in result.comparison["rows"] if row["system"] == "SFT"]
    alone = replace(result, comparison={**result.comparison, "rows": rows, "contamination": sft_only})
    assert judge(alone).text == "At T=1 SFT scores 0.600 [0.550, 0.650]."
    assert contamination(alone).endswith("without them SFT 0.350 [0.300, 0.400].")


def test_verdict_compares_with_sft_at_its_best_decoding(make: Make) -> None:
    verdict = judge(make(sft=0.6, policy=0.7, control=0.8))
    difference = "The difference of Self-Contrast at T=1 from SFT at its best decoding (T=0.7) is"
    assert f"{difference} -0.100 [-0.140, -0.060], p = 0.002." in verdict.text
    assert "at its best" not in judge(make(sft=0.6, policy=0.7, control=0.5)).text  # T=1 is SFT's best decoding


def test_contamination_states_flagged_prompts_and_results_without_them(make: Make) -> None:
    result = make()
    assert contamination(result) == (
        "Contamination: 1 of 20 test prompts (5.0%) resembles a training prompt; without them "
        "SFT 0.350 [0.300, 0.400], Self-Contrast 0.400 [0.350, 0.450], difference +0.050 [+0.010, +0.090], p = 0.500."
    )
    measured = result.comparison["contamination"]
    clean = {"benchmark": "test", "prompts": 20, "flagged": 0, "examples": [], "without": []}
    for case, sentence in (
        (clean, "Contamination: none of 20 test prompts resembles a training prompt."),
        (measured | {"without": []}, "Contamination: 1 of 20 test prompts (5.0%) resembles a training prompt."),
        ({}, ""),
    ):
        assert contamination(replace(result, comparison={**result.comparison, "contamination": case})) == sentence


def test_verdict_limits_a_gain_that_sharper_sampling_also_gives(make: Make) -> None:
    verdict = judge(make(sft=0.6, policy=0.7, control=0.8))
    assert verdict.headline == "Better than SFT, but no more than sharper sampling gives"
    assert "explains as much as the whole gain" in verdict.control


def test_verdict_gain_with_a_worse_control_is_not_explained_by_it(make: Make) -> None:
    assert "does not explain the gain" in judge(make(sft=0.6, policy=0.7, control=0.55)).control


def test_verdict_of_a_lower_score_is_worse(make: Make) -> None:
    verdict = judge(make(sft=0.7, policy=0.6, control=0.8))
    assert verdict.headline == "Worse than SFT"
    assert "-0.100 [-0.140, -0.060]" in verdict.sentence
    assert verdict.sentence.endswith("a clear loss.")
    assert "this training does not" in verdict.control


@pytest.mark.parametrize(("half", "p"), [(0.2, 0.3), (0.2, 0.001), (0.04, 0.3)])
def test_verdict_needs_interval_and_p_value_for_a_clear_difference(make: Make, half: float, p: float) -> None:
    verdict = judge(make(half=half, p=p))
    assert verdict.headline == "No clear difference from SFT"
    assert verdict.sentence.endswith("no significant difference.")


def test_verdict_with_unknown_intervals_is_level(unbounded: Result) -> None:
    assert judge(unbounded).headline == "No clear difference from SFT"
    assert "0.700 [–]" in judge(unbounded).sentence


def test_verdict_names_a_proxy(proxy: Result) -> None:
    verdict = judge(proxy)
    assert verdict.headline == "Closer to the targets than SFT (by a proxy)"
    assert "a proxy, not quality" in verdict.sentence
    assert "score" not in verdict.text


def test_verdict_of_one_decoding_has_no_control(make: Make) -> None:
    result = make()
    sft, policy = result.comparison["rows"][:2]
    policy = policy | {"against_best": {**policy["against_best"], "decoding": "T=1"}}
    one_decoding = replace(result, comparison={**result.comparison, "rows": [sft, policy]})
    assert judge(one_decoding).control == ""


def test_verdict_control_within_the_interval_of_sft_does_not_help(make: Make) -> None:
    """The interval of SFT's mean is ±0.05."""
    assert "does not clearly help" in judge(make(sft=0.6, policy=0.6, control=0.64, half=0.2, p=0.5)).control
    assert "sharper sampling helps (+0.060)" in judge(make(sft=0.6, policy=0.6, control=0.66, half=0.2, p=0.5)).control


@pytest.mark.parametrize(
    ("low", "high", "headline"),
    [
        (0.35, 0.47, "Closer to the targets than SFT (by a proxy); pairwise judges it worse"),
        (0.35, 0.52, "Closer to the targets than SFT (by a proxy)"),
        (0.53, 0.67, "Closer to the targets than SFT (by a proxy)"),
    ],
)
def test_headline_of_a_proxy_names_a_judge_that_contradicts_it(
    proxy: Result, make: Make, low: float, high: float, headline: str
) -> None:
    rate = {"estimate": (low + high) / 2, "low": low, "high": high, "n": 40, "clusters": 20, "confidence": 0.95}
    lines = [
        {"system": system, "what": "win rate over SFT", "kind": "share", "value": rate, "note": ""}
        for system in ("Self-Contrast iteration 1", "Self-Contrast")
    ]
    benchmarks = {"pairwise": {"lines": lines, "facts": {}, "shown": []}}
    verdict = judge(replace(proxy, benchmarks=benchmarks))
    assert verdict.headline == headline
    assert verdict.control.endswith(
        f"The win rate over SFT in pairwise is {100 * rate['estimate']:.1f}% [{100 * low:.1f}, {100 * high:.1f}]."
    )
    assert "pairwise" not in judge(replace(make(), benchmarks=benchmarks)).headline  # a verifier's score


def test_headline_of_a_level_proxy_names_a_clear_judge(proxy: Result) -> None:
    rows = [row | ({"p_value": 0.5} if "p_value" in row else {}) for row in proxy.comparison["rows"]]
    rate = {"estimate": 0.6, "low": 0.55, "high": 0.65, "confidence": 0.95}
    line = {"system": "Self-Contrast", "what": "win rate over SFT", "kind": "share", "value": rate}
    level = replace(proxy, comparison={**proxy.comparison, "rows": rows}, benchmarks={"alpaca_eval": {"lines": [line]}})
    assert judge(level).headline == "No clear difference from SFT (by a proxy); alpaca_eval judges it better"


def test_verdict_names_a_changed_class_of_the_papers_method(make: Make) -> None:
    config = {"label": "Self-Contrast", "filter": {"selector": {"_target_": "x.Random"}}}
    result = make(config=config)
    assert "At T=1 Self-Contrast, filter.selector=Random (K=4) scores" in judge(result).sentence
    other = judge(replace(result, config={**config, "label": "DPO_std"}))
    assert "At T=1 Self-Contrast (K=4) scores" in other.sentence  # the system's own name
