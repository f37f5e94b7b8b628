"""Test claims on results with hand-made scores by prompt, so that every effect and verdict is known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from selfcontrast.errors import UserError
from selfcontrast.evaluation.statistics import CrossedMean
from selfcontrast.results import Result
from studies.claims import page as claims_page
from studies.claims.__main__ import main
from studies.claims.judge import (
    AT_RANDOM,
    CONTINUED,
    DPO_STD,
    EQUAL_TOKENS,
    INCONCLUSIVE,
    MARGIN,
    NO_FILTER,
    NOT_SUPPORTED,
    OURS,
    SUPPORTED,
    Condition,
    claims,
    experiments,
    titles,
    verdict,
)

Make = Callable[..., Result]
METHODS = Path(__file__).parents[2] / "conf" / "method"
PROMPTS = 200
DECODINGS = ("T=1", "T=0.7")


def scores(level: float, seed: int, name: str) -> list[float]:
    """Return scores near `level`: the prompts' shared difficulty plus a little noise per seed and per prompt."""
    difficulty = np.random.default_rng(0).normal(0, 0.2, PROMPTS)
    rng = np.random.default_rng([seed, *name.encode()])
    return [float(x) for x in level + difficulty + rng.normal(0, 0.0005) + rng.normal(0, 0.01, PROMPTS)]


def result(
    make: Make, method: str, k: int, seed: int, gain: float, config: dict[str, Any] | None = None, sharp: float = 0.0
) -> Result:
    """Return a run whose policy is `gain` above SFT's 0.6 at T=1, and `sharp` above SFT's 0.7 at T=0.7."""
    ids = [f"p{i:03d}" for i in range(PROMPTS)]
    means = {
        system: {
            decoding: scores(base + more, seed, f"{system}{decoding}" if system == "SFT" else f"{system}{k}{decoding}")
            for decoding, base, more in zip(DECODINGS, (0.6, 0.7), extra, strict=True)
        }
        for system, extra in (("SFT", (0.0, 0.0)), (method, (gain, sharp)))
    }
    base = make(k=k, seed=seed, config={"label": method, **(config or {})})
    for row in base.comparison["rows"]:
        row["system"] = method if row["system"] != "SFT" else "SFT"
    return replace(base, prompts={"ids": ids, "means": means})


GAINS = {1: 0.02, 4: 0.03, 16: 0.04}


@pytest.fixture
def runs(make: Make) -> list[Result]:
    """Return runs with three seeds for K=1, 4, 16 and for every method that a claim needs."""
    results = []
    for seed in (1, 2, 3):
        results += [result(make, OURS, k, seed, gain) for k, gain in GAINS.items()]
        others = [(NO_FILTER, 16, 0.04), (DPO_STD, 1, 0.06), (CONTINUED, 16, 0.0), (EQUAL_TOKENS, 1, 0.035)]
        results += [result(make, name, k, seed, gain) for name, k, gain in others]
    return results


def claims_by_name(results: list[Result]) -> dict[str, Any]:
    return {claim.claim: claim for claim in claims(experiments(results)[0])}


def test_claims_effects_and_verdicts_equal_hand_computation(runs: list[Result]) -> None:
    by_name = claims_by_name(runs)
    expected = {
        "Self-Contrast beats SFT": (0.04, SUPPORTED),
        "Self-Contrast beats standard DPO": (-0.02, NOT_SUPPORTED),
        # The line through (0, .02), (2, .03), (4, .04) in log2 K rises by exactly .02.
        "it grows with K": (0.02, SUPPORTED),
        "the filter helps": (0.0, NOT_SUPPORTED),
        "control: it is not merely more training": (0.04, SUPPORTED),
        "control: it is not merely sharper": (0.0, NOT_SUPPORTED),
        "control: more negatives are not merely more tokens on the same prompts": (0.005, None),
    }
    assert list(by_name) == list(expected)
    for name, (effect, outcome) in expected.items():
        assert by_name[name].effect.estimate == pytest.approx(effect, abs=0.003)
        assert outcome is None or by_name[name].verdict == outcome, name
    assert by_name["it grows with K"].contrast == "rise from K=1 to K=16 along a line in log K, at T=1"
    assert by_name["control: it is not merely sharper"].contrast == "Self-Contrast K=16 minus SFT, at T=0.7"


def test_effect_is_paired_within_seeds_and_prompts(runs: list[Result]) -> None:
    """Pairing removes the prompts' shared difficulty, whose standard deviation is 0.2. So the interval is narrow."""
    effect = claims_by_name(runs)["Self-Contrast beats SFT"].effect
    results = [r for r in runs if r.config["label"] == OURS and r.negatives == 16]
    by_seed = [np.mean(np.subtract(r.prompts["means"][OURS]["T=1"], r.prompts["means"]["SFT"]["T=1"])) for r in results]
    assert effect.estimate == pytest.approx(np.mean(by_seed))
    assert effect.high - effect.low < 0.04
    assert (effect.seeds, effect.prompts) == (3, PROMPTS)


def test_effect_of_k_equals_the_least_squares_slope(make: Make) -> None:
    jobs = [result(make, OURS, k, seed, 0.01 * k) for seed in (1, 2) for k in (1, 2, 8)]
    means = [np.mean([np.mean(r.prompts["means"][OURS]["T=1"]) for r in jobs if r.negatives == k]) for k in (1, 2, 8)]
    slope = stats.linregress([0, 1, 3], means).slope
    assert claims_by_name(jobs)["it grows with K"].effect.estimate == pytest.approx(3 * slope)


def crossed(estimate: float, half: float, seeds: int = 3) -> CrossedMean:
    return CrossedMean(estimate, estimate - half, estimate + half, 0.04, half / 2, 0.0, seeds, 100, 0.95)


@pytest.mark.parametrize(
    ("effect", "p_holm", "expected"),
    [
        (crossed(0.03, 0.01), 0.04, SUPPORTED),
        (crossed(0.03, 0.01), 0.06, INCONCLUSIVE),  # significant alone, but not among so many claims
        (crossed(-0.03, 0.01), 0.001, NOT_SUPPORTED),
        (crossed(0.0, MARGIN * 0.9), 1.0, NOT_SUPPORTED),
        (crossed(0.005, 0.003), 0.001, NOT_SUPPORTED),  # significantly above 0, but also significantly below MARGIN
        (crossed(0.008, 0.003), 0.001, SUPPORTED),
        (crossed(0.0, MARGIN * 1.1), 1.0, INCONCLUSIVE),
        (crossed(0.03, 0.01, seeds=1), 0.001, INCONCLUSIVE),
        (crossed(0.03, float("nan")), float("nan"), INCONCLUSIVE),
    ],
)
def test_verdict_follows_interval_and_corrected_p_value(effect: CrossedMean, p_holm: float, expected: str) -> None:
    assert verdict(effect, p_holm) == expected


def test_effect_uses_only_seeds_with_both_methods(runs: list[Result]) -> None:
    fewer = [r for r in runs if not (r.config["label"] == DPO_STD and r.seed == 2)]
    assert claims_by_name(fewer)["Self-Contrast beats standard DPO"].effect.seeds == 2
    assert claims_by_name(fewer)["Self-Contrast beats SFT"].effect.seeds == 3


def test_claims_of_missing_methods_are_left_out(make: Make) -> None:
    by_name = claims_by_name([result(make, OURS, 4, seed, 0.1) for seed in (1, 2)])
    assert list(by_name) == ["Self-Contrast beats SFT", "control: it is not merely sharper"]


def test_experiments_with_different_data_are_separate(runs: list[Result], make: Make) -> None:
    clean = {"data": {"noise": 0.0}}
    noisy = [replace(r, config={**r.config, "data": {"noise": 0.15}}) for r in runs]
    both = experiments([*(result(make, OURS, 16, s, -0.1, clean) for s in (1, 2)), *noisy])
    assert titles(both) == ["data.noise=0.15", "data.noise=0.0"]
    assert [len(experiment.results) for experiment in both] == [21, 2]
    assert claims(both[1])[0].verdict == NOT_SUPPORTED


def with_other_scores(base: Result) -> Result:
    means = {
        system: {decoding: [x + 0.01 for x in v] for decoding, v in decodings.items()}
        for system, decodings in base.prompts["means"].items()
    }
    return replace(base, prompts={**base.prompts, "means": means})


def test_experiments_count_repeated_results_once(runs: list[Result]) -> None:
    assert claims(experiments([*runs, *runs[:5]])[0]) == claims(experiments(runs)[0])


def test_experiments_with_two_results_of_one_method_k_and_seed_are_left_out(runs: list[Result]) -> None:
    again = with_other_scores(runs[0])
    assert experiments([*runs, again]) == []
    (omitted,) = claims_page.judge_experiments([*runs, again])
    assert omitted.left_out == "Self-Contrast has 2 results for K=1 and seed 1"
    assert "not judged: Self-Contrast has 2 results" in claims_page.as_markdown([omitted])
    assert experiments([replace(r, prompts={}) for r in runs]) == []  # an old version stored no scores by prompt


def test_experiments_with_nan_scores_are_left_out(runs: list[Result]) -> None:
    """Check that NaN in the results of an old version is reported, instead of ending the report with an error."""
    means = {name: dict(ways) for name, ways in runs[0].prompts["means"].items()}
    means["SFT"]["T=1"] = [float("nan"), *means["SFT"]["T=1"][1:]]
    (omitted,) = claims_page.judge_experiments(
        [replace(runs[0], prompts={**runs[0].prompts, "means": means}), *runs[1:]]
    )
    assert "Self-Contrast K=1, seed 1" in omitted.left_out
    assert "finite" in omitted.left_out


def test_claims_of_equal_scores_are_inconclusive(runs: list[Result]) -> None:
    """All differences are 0. The verdict is not "not supported", since their variation is unknown."""
    same = []
    for original in runs:
        name = str(original.config["label"])
        means = original.prompts["means"] | {name: original.prompts["means"]["SFT"]}
        same.append(replace(original, prompts={**original.prompts, "means": means}))
    (experiment,) = claims_page.judge_experiments(same)
    assert {row[-1] for row in experiment.claims} == {f"inconclusive: {claims_page.NO_VARIATION}"}
    assert experiment.claims[0][2] == "0.000 [–]"


def test_rule_states_the_confidence_in_use(runs: list[Result]) -> None:
    for item in runs:
        item.comparison["rows"][0]["mean"]["confidence"] = 0.9
    (experiment,) = claims_page.judge_experiments(runs)
    assert "p < 0.1 after Holm's correction" in experiment.rule
    assert experiment.rule in claims_page.as_markdown([experiment])


def test_experiments_with_one_method_in_several_settings_are_left_out(runs: list[Result]) -> None:
    other = replace(runs[0], config={**runs[0].config, "trainer": {"lr": 0.5}})
    (omitted,) = claims_page.judge_experiments([other, *runs[1:]])
    assert omitted.left_out.endswith("several settings (Self-Contrast; Self-Contrast, trainer.lr=0.5)")


def test_experiments_measured_by_similarity_are_left_out(runs: list[Result]) -> None:
    by_proxy = [replace(r, comparison={**r.comparison, "measure": "similarity"}) for r in runs]
    assert experiments(by_proxy) == []
    assert claims_page.judge_experiments(by_proxy) == []


def test_method_labels_of_the_claims_exist_in_the_configs() -> None:
    names = {str(yaml.safe_load(file.read_text())["label"]) for file in METHODS.glob("*.yaml")}
    assert {OURS, NO_FILTER, AT_RANDOM, DPO_STD, CONTINUED, EQUAL_TOKENS} <= names


def test_judge_experiments_lists_methods_by_decoding_with_costs(runs: list[Result]) -> None:
    judged = claims_page.judge_experiments(runs)[0]
    by_name = {row[0]: dict(zip(judged.method_heads, row, strict=True)) for row in judged.methods}
    assert list(by_name)[:4] == ["SFT", *(f"Self-Contrast K={k}" for k in (1, 4, 16))]
    assert by_name["SFT"]["T=1"].startswith("0.6")
    assert by_name["SFT"]["minus SFT, T=1"] == "–"
    cells = by_name["Self-Contrast K=16"]
    assert (cells["seeds"], cells["entropy"], cells["K used"], cells["prompts"], cells["seconds"]) == (
        "3",
        "17.25",
        "15.5",
        "49",
        "61",
    )
    assert cells["minus SFT, T=1"].startswith("+0.0")
    experiment = experiments(runs)[0]
    assert experiment.mean({Condition(OURS, 99, "T=1"): 1.0}) is None


def test_judge_experiments_of_one_seed_or_one_method_is_empty(make: Make) -> None:
    assert claims_page.judge_experiments([result(make, OURS, k, 1, 0.1) for k in (1, 4)]) == []
    assert claims_page.judge_experiments([result(make, OURS, 4, seed, 0.1) for seed in (1, 2)]) == []


def test_claims_command_writes_claims_and_the_report(
    runs: list[Result], write: Callable[[Path, Result], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, item in enumerate(runs):
        write(tmp_path / str(i), item)
    main([str(tmp_path)])
    page, text = (tmp_path / "claims.html").read_text(), (tmp_path / "claims.md").read_text()
    for part in ("The claims", "Self-Contrast beats standard DPO", NOT_SUPPORTED):
        assert part in page
    assert text.count(f"| {SUPPORTED} |") >= 3
    assert (tmp_path / "report.html").is_file()
    assert "it grows with K" in capsys.readouterr().out


def test_claims_command_without_enough_results_says_what_claims_need(
    runs: list[Result], write: Callable[[Path, Result], None], tmp_path: Path
) -> None:
    write(tmp_path / "0", runs[0])
    with pytest.raises(UserError, match="several methods or K, with two seeds"):
        main([str(tmp_path)])
