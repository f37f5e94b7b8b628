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
