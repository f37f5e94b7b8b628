"""Test the comparison of policies, on so few scores that the numbers can be checked by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmark_cases import lm_eval
from selfcontrast.errors import UserError
from selfcontrast.evaluation.compare import BASELINE, Comparison, by_prompt, compare, row_of
from selfcontrast.evaluation.contamination import Contamination
from selfcontrast.evaluation.evaluate import ANSWERS, LIKELIHOOD, Evaluation
from selfcontrast.filters.encode import LexicalEncoder

# Scores by prompt: two samples each. Prompt c has two turns.
SFT = {"a": [[0.0], [0.5]], "b": [[1.0], [0.0]], "c": [[0.2, 0.6], [1.0, 0.0]]}
POLICY = {"a": [[1.0], [0.5]], "b": [[0.0], [0.5]], "c": [[0.5, 0.5], [0.5, 0.5]]}
CATEGORY = {"a": "x", "b": "", "c": "y"}
SETTINGS = Evaluation(
    split="test",
    prompts=None,
    decodings=[{"name": "T=1", "temperature": 1.0, "samples": 2}, {"name": "T=0.5", "temperature": 0.5, "samples": 2}],
    top_p=1.0,
    max_new_tokens=1,
    max_length=1,
    lm_eval=lm_eval(),
    checkpoints=0,
    max_cost=None,
    judgments_shown=None,
    contamination=Contamination(8, 0.8, None, LexicalEncoder("word", 1, 1, 16)),
    seed=0,
    confidence=0.9,
    n_bootstrap=200,
    backend=None,
    benchmarks={},
)


def write(
    folder: Path, scores: dict[str, list[list[float]]], measure: str, likelihood: list[tuple[float, int]]
) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "decoding": decoding,
            "id": name,
            "sample": sample,
            "turn": turn,
            "tokens": 3,
            "log_prob": -1.5,
            "category": CATEGORY[name],
            measure: score * factor,
        }
        for decoding, factor in (("T=1", 1.0), ("T=0.5", 0.5))
        for name, samples in scores.items()
        for sample, turns in enumerate(samples)
        for turn, score in enumerate(turns)
    ]
    folder.mkdir()
    shuffled = rows if "sft" in folder.name else rows[::-1]  # rows pair up by prompt and sample, not by position
    pd.DataFrame(shuffled).to_parquet(folder / ANSWERS)
    frame = pd.DataFrame([("a", *likelihood[0]), ("b", *likelihood[1])], columns=["id", "log_prob", "tokens"])
    frame.to_parquet(folder / LIKELIHOOD)
    return folder


@pytest.fixture(params=["score", "similarity"])
def measure(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def overlaps(*flagged: str) -> pd.DataFrame:
    rows = [
        {"benchmark": "test", "id": name, "prompt": f"{name}?", "match": f"{name}!", "containment": 1.0}
        | {"similarity": float("nan"), "flagged": name in flagged}
        for name in SFT
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def systems(tmp_path: Path, measure: str) -> dict[str, Path]:
    return {
        BASELINE: write(tmp_path / "sft", SFT, measure, [(-4.0, 2), (-3.0, 1)]),
        "policy": write(tmp_path / "policy", POLICY, measure, [(-2.0, 2), (-1.0, 1)]),
    }


@pytest.fixture
def comparison(systems: dict[str, Path]) -> Comparison:
    return compare(systems, SETTINGS, overlaps())


def test_compare_names_the_measure_and_rows(comparison: Comparison, measure: str) -> None:
    assert comparison["measure"] == measure
    assert [(r["system"], r["decoding"], r["temperature"]) for r in comparison["rows"]] == [
        (BASELINE, "T=1", 1.0),
        ("policy", "T=1", 1.0),
        (BASELINE, "T=0.5", 0.5),
        ("policy", "T=0.5", 0.5),
    ]


def test_compare_means_are_over_dialogues(comparison: Comparison) -> None:
    """A dialogue's score is the mean of its turns: SFT 0, 0.5 | 1, 0 | 0.4, 0.5; policy 1, 0.5 | 0, 0.5 | 0.5, 0.5."""
    for decoding, factor in (("T=1", 1.0), ("T=0.5", 0.5)):
        sft, policy = row_of(comparison, BASELINE, decoding), row_of(comparison, "policy", decoding)
        assert sft["mean"]["estimate"] == pytest.approx(factor * 2.4 / 6)
        assert policy["mean"]["estimate"] == pytest.approx(factor * 3.0 / 6)
        assert (policy["mean"]["n"], policy["mean"]["clusters"], policy["mean"]["confidence"]) == (6, 3, 0.9)
        assert policy["mean"]["low"] <= policy["mean"]["estimate"] <= policy["mean"]["high"]


def test_compare_difference_is_paired_by_prompt(comparison: Comparison) -> None:
    """Differences by prompt are 0.5, -0.25 and 0.05, with sum 0.3.

    The eight sign patterns have sums 0.8, 0.7, 0.3 and 0.2 up to sign. Six of them reach 0.3.
    """
    policy = row_of(comparison, "policy", "T=1")
    assert policy["difference"]["estimate"] == pytest.approx((0.5 - 0.25 + 0.05) / 3)
    assert policy["p_value"] == pytest.approx(6 / 8)
    assert "difference" not in row_of(comparison, BASELINE, "T=1")


def test_compare_against_best_uses_sfts_best_decoding(comparison: Comparison) -> None:
    """SFT is best at T=1, with 0.25, 0.5 and 0.45 by prompt. The policy at T=0.5 has 0.375, 0.125 and 0.25.

    The differences 0.125, -0.375 and -0.2 have sum -0.45. The eight sign patterns have sums 0.7, 0.45, 0.3 and 0.05 up
    to sign. Four of them reach 0.45.
    """
    best = row_of(comparison, "policy", "T=0.5")["against_best"]
    assert best["decoding"] == "T=1"
    assert best["difference"]["estimate"] == pytest.approx((0.125 - 0.375 - 0.2) / 3)
    assert best["p_value"] == pytest.approx(4 / 8)
    same = row_of(comparison, "policy", "T=1")
    assert same["against_best"]["difference"] == same["difference"]


def test_compare_also_reports_results_without_flagged_prompts(systems: dict[str, Path], comparison: Comparison) -> None:
    assert comparison["contamination"] == {
        "benchmark": "test", "prompts": 3, "flagged": 0, "examples": [], "without": []
    }  # fmt: skip
    other = overlaps("a", "b", "c").assign(benchmark="mt_bench")  # another benchmark's prompts have the same ids
    flagged = compare(systems, SETTINGS, pd.concat([overlaps("a"), other], ignore_index=True))
    sft, policy = flagged["contamination"]["without"]
    assert (flagged["contamination"]["flagged"], flagged["contamination"]["prompts"]) == (1, 3)
    assert [(r["system"], r["decoding"]) for r in (sft, policy)] == [(BASELINE, "T=1"), ("policy", "T=1")]
    assert sft["mean"]["estimate"] == pytest.approx((1 + 0 + 0.4 + 0.5) / 4)
    assert policy["difference"]["estimate"] == pytest.approx((-0.25 + 0.05) / 2)
    [example] = flagged["contamination"]["examples"]
    assert example == {"prompt": "a?", "match": "a!", "containment": 1.0, "similarity": None}
    assert flagged["rows"] == comparison["rows"]  # the main rows use all prompts
    assert compare(systems, SETTINGS, overlaps("a", "b", "c"))["contamination"]["without"] == []


def test_compare_win_rate_by_prompt_and_sample_counts_ties_as_half(comparison: Comparison) -> None:
    """The policy's outcomes against SFT, by prompt, are win, tie | loss, win | win, tie."""
    assert row_of(comparison, "policy", "T=1")["win_rate"]["estimate"] == pytest.approx((1 + 0.5 + 0 + 1 + 1 + 0.5) / 6)


def test_compare_nll_and_tokens_are_per_dialogue(comparison: Comparison) -> None:
    policy = row_of(comparison, "policy", "T=1")
    assert policy["nll"] == pytest.approx((4 * 1.5 + 2 * 3.0) / 6)
    assert policy["tokens"] == pytest.approx((4 * 3 + 2 * 6) / 6)


def test_compare_categories_use_the_first_decoding(comparison: Comparison) -> None:
    means = {(c["system"], c["category"]): c["mean"]["estimate"] for c in comparison["categories"]}
    expected = {(BASELINE, "x"): 0.25, (BASELINE, "y"): 0.45, ("policy", "x"): 0.75, ("policy", "y"): 0.5}
    assert means == pytest.approx(expected)


def test_compare_likelihood_is_per_token(comparison: Comparison) -> None:
    log_probs = {row["system"]: row["log_prob_per_token"]["estimate"] for row in comparison["likelihood"]}
    assert log_probs == pytest.approx({BASELINE: (-2 - 3) / 2, "policy": (-1 - 1) / 2})


@pytest.mark.parametrize("column", ["score", "log_prob"])
def test_compare_stored_nan_is_rejected_with_its_example(column: str, tmp_path: Path) -> None:
    """An earlier version skipped NaN in sums of log-probabilities and in means over turns, and printed 0.0."""
    folder = write(tmp_path / "sft", SFT, "score", [(-1.0, 2), (-2.0, 4)])
    frame = pd.read_parquet(folder / ANSWERS)
    frame.loc[frame["id"] == "c", column] = float("nan")
    frame.to_parquet(folder / ANSWERS)
    for read in (
        lambda: compare({BASELINE: folder}, SETTINGS, overlaps()),
        lambda: by_prompt({BASELINE: folder}, SETTINGS),
    ):
        with pytest.raises(UserError, match=rf"the {column} of the answer to example 'c' is nan"):
            read()
