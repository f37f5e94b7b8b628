"""Test pairwise comparisons in both orders and the numbers computed from them."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from benchmark_cases import FakeJudge, sample_subject, subject, write_answers
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options
from selfcontrast.evaluation.benchmarks.pairs import both_orders, pair_lines
from selfcontrast.evaluation.benchmarks.pairwise import AlpacaEval, Pairwise
from selfcontrast.evaluation.judges import Case, Judgment
from selfcontrast.evaluation.statistics import length_controlled_win_rate
from selfcontrast.report.benchmarks import cell
from selfcontrast.store import settings_of
from tiny import example, policy_folder

OPTIONS = Options(confidence=0.95, n_bootstrap=200, seed=0)
EXAMPLES = [example(name, f"what is {name}?", f"target {name}") for name in "abcd"]


def prefer_shorter(case: Case) -> Judgment:
    """Prefer the shorter answer in either position."""
    first, second = (len(answers[-1]) for answers in case.answers)
    return Judgment("ok", 0.5 + 0.5 * ((second > first) - (first > second)))


def prefer_longer(case: Case) -> Judgment:
    first, second = (len(answers[-1]) for answers in case.answers)
    return Judgment("ok", 0.5 + 0.5 * ((first > second) - (first < second)))


def prefer_first(case: Case) -> Judgment:
    return Judgment("ok", 1.0)


def benchmark(judge: FakeJudge, **changes: Any) -> Pairwise:
    settings: dict[str, Any] = {"against": "target", "limit": None, "samples": 1, "min_coverage": 1.0, "judge": judge}
    return Pairwise(**{**settings, **changes})


def lines(compared: Pairwise | AlpacaEval, folder: Path) -> dict[str, float]:
    return {line.what: line.value.estimate for line in compared.lines({"SFT": folder}, OPTIONS)}


ANSWERS = {("a", 0): ["short"], ("b", 0): ["a longer answer"], ("c", 0): ["target c"], ("d", 0): ["x"]}


def test_run_judges_every_pair_in_both_orders(tmp_path: Path) -> None:
    """Targets have 8 characters. Answers a and d win, c ties and b loses: (1 + 0 + 1/2 + 1) / 4."""
    judge = FakeJudge(prefer_shorter)
    summary = benchmark(judge).run(tmp_path, subject(EXAMPLES, write_answers(tmp_path / "scores", ANSWERS)))
    assert [(c.example.id, c.answers, c.swapped) for c in judge.cases[:2]] == [
        ("a", (("short",), ("target a",)), False),
        ("a", (("target a",), ("short",)), True),
    ]
    assert summary["judgments"] == 8
    values = lines(benchmark(judge), tmp_path)
    assert values["win rate over target"] == 2.5 / 4
    assert values["verdicts that flip with the order"] == 0
    assert values["first position's share"] == 0.5
    assert values["ties"] == 0.25


def test_lines_position_biased_judge_gives_a_tie(tmp_path: Path) -> None:
    judge = FakeJudge(prefer_first)
    benchmark(judge).run(tmp_path, subject(EXAMPLES, write_answers(tmp_path / "scores", ANSWERS)))
    values = lines(benchmark(judge), tmp_path)
    assert values["win rate over target"] == 0.5
    assert values["verdicts that flip with the order"] == 1
    assert values["first position's share"] == 1


def test_run_against_sft_pairs_answers_by_sample(tmp_path: Path) -> None:
    judge = FakeJudge(prefer_shorter)
    dialogue = example("e", "?", "!", turns=["one", "two"])
    answers = write_answers(tmp_path / "own", {("e", 0): ["1", "22"], ("e", 1): ["1", "4444"]})
    base = write_answers(tmp_path / "base", {("e", 0): ["0", "333"], ("e", 1): ["0", "333"]})
    against = benchmark(judge, against="SFT", samples=5)
    against.run(tmp_path, subject([dialogue], answers, label="Self-Contrast", baseline=base))
    assert [c.answers for c in judge.cases if not c.swapped] == [
        (("1", "22"), ("0", "333")),
        (("1", "4444"), ("0", "333")),
    ]
    assert judge.cases[0].turn == 1
    pairs = both_orders(pd.read_parquet(tmp_path / JUDGMENTS))
    assert list(pairs["outcome"]) == [1, 0]
    assert list(pairs["longer"]) == [-1, 1]


def test_prompts_without_target_are_compared_with_sft_only(tmp_path: Path) -> None:
    without_target = [replace(example, target="", has_target=False) for example in EXAMPLES[:2]]
    judge = FakeJudge(prefer_shorter)
    scores = write_answers(tmp_path / "scores", ANSWERS)
    benchmark(judge).run(tmp_path, subject([*without_target, *EXAMPLES[2:]], scores))
    assert {case.example.id for case in judge.cases} == {"c", "d"}
    assert benchmark(judge).skip_reason(without_target, None) == "no prompt has a target to compare with"
    assert benchmark(judge, against="SFT").skip_reason(without_target, None) is None


def test_both_orders_pair_with_one_usable_judgment_is_left_out(tmp_path: Path) -> None:
    """Prompt a has one usable judgment, with the system's answer first. Counting it would reward the position."""

    def fail_one(case: Case) -> Judgment:
        failed = case.swapped and case.example.id == "a"
        return Judgment("unparsable", None) if failed else prefer_first(case)

    judge = FakeJudge(fail_one)
    summary = benchmark(judge, min_coverage=0.5).run(
        tmp_path, subject(EXAMPLES, write_answers(tmp_path / "scores", ANSWERS))
    )
    assert (summary["coverage"], summary["unparsable"]) == (7 / 8, 1)
    assert list(both_orders(pd.read_parquet(tmp_path / JUDGMENTS))["id"]) == ["b", "c", "d"]
    assert lines(benchmark(judge), tmp_path)["win rate over target"] == 0.5


def test_lines_difference_from_sft_uses_prompts_judged_for_both_systems(tmp_path: Path) -> None:
    """Three prompts were judged for both systems: Self-Contrast wins all, SFT none. SFT has none of prompt d."""
    judge = FakeJudge(
        lambda case: prefer_shorter(case) if len(case.answers[0][-1]) != 9 else Judgment("unparsable", None)
    )
    policy = {(name, 0): ["x" if name != "d" else "much longer than the target"] for name in "abcd"}
    base = {(name, 0): ["longer than 8" if name != "d" else "123456789"] for name in "abcd"}
    for name, answers in (("SFT", base), ("Self-Contrast", policy)):
        scores = write_answers(tmp_path / f"scores {name}", answers)
        (tmp_path / name).mkdir()
        benchmark(judge, min_coverage=0.5).run(tmp_path / name, subject(EXAMPLES, scores, label=name))
    folders = {name: tmp_path / name for name in ("SFT", "Self-Contrast")}
    values = {(line.system, line.what): line.value for line in benchmark(judge).lines(folders, OPTIONS)}
    difference = values["Self-Contrast", "win rate less SFT's"]
    assert (difference.estimate, difference.clusters) == (1, 3)
    assert values["Self-Contrast", "win rate less SFT's at equal length"].clusters == 3
    assert values["Self-Contrast", "win rate over target"].estimate == 0.75


def lines_by_name(compared: Pairwise | AlpacaEval, folders: dict[str, Path]) -> dict[tuple[str, str], Line]:
    return {(line.system, line.what): line for line in compared.lines(folders, OPTIONS)}


def test_lines_single_pair_per_prompt_has_no_rate_at_equal_length(tmp_path: Path) -> None:
    """A single pair does not separate the prompt's difficulty from the effect of length."""
    judge = FakeJudge(prefer_shorter)
    benchmark(judge).run(tmp_path, subject(EXAMPLES, write_answers(tmp_path / "scores", ANSWERS)))
    line = lines_by_name(benchmark(judge), {"SFT": tmp_path})["SFT", "win rate at equal length"]
    assert math.isnan(line.value.estimate)
    assert line.note == "not identified: no prompt has two pairs of different length"
    assert cell(asdict(line)) == "– (not identified: no prompt has two pairs of different length)"


def test_lines_several_samples_per_prompt_identify_rate_at_equal_length(tmp_path: Path) -> None:
    """A judge that only looks at length finds a tie at equal length."""
    prompts = [example(f"p{i:02}", "?", "x" * (20 + 5 * i)) for i in range(20)]
    answers = {(e.id, s): ["y" * (len(e.target) + 4 * s - 6)] for e in prompts for s in range(4)}
    judge = FakeJudge(prefer_longer)
    benchmark(judge, samples=4).run(tmp_path, subject(prompts, write_answers(tmp_path / "scores", answers)))
    values = lines_by_name(benchmark(judge, samples=4), {"SFT": tmp_path})
    line = values["SFT", "win rate at equal length"]
    assert values["SFT", "win rate over target"].value.estimate == 0.5
    assert line.value.estimate == pytest.approx(0.5, abs=0.02)
    assert line.note == "weak: the data hardly determine it"  # length decides every verdict
    assert line.value.low < 0.3 < 0.7 < line.value.high
    assert cell(asdict(line)).endswith("] (weak: the data hardly determine it)")


def test_lines_verdicts_that_flip_with_the_order_are_no_tie(tmp_path: Path) -> None:
    """A pair won in one order and lost in the other has the mean outcome 0.5, like a tie, but is not counted as one."""
    judge = FakeJudge(lambda case: Judgment("ok", 0.5) if case.example.id == "a" else prefer_first(case))
    benchmark(judge).run(tmp_path, subject(EXAMPLES, write_answers(tmp_path / "scores", ANSWERS)))
    values = lines(benchmark(judge), tmp_path)
    assert values["ties"] == 0.25
    assert values["verdicts that flip with the order"] == 0.75


def test_pair_lines_weigh_questions_equally_without_repeating_rows() -> None:
    """Repeating rows until the weights are equal would take 360,360 rows per question for 1 to 13 samples."""
    rows = [
        {"id": f"q{n:02}", "turn": 0, "sample": s, "first": float(n % 2), "second": float(n % 2), "longer": s - n / 2}
        for n in range(1, 14)
        for s in range(n)
    ]
    pairs = pd.DataFrame(rows).assign(outcome=lambda frame: frame["first"])
    values = {line.what: line.value for line in pair_lines({"SFT": pairs}, "target", OPTIONS)}
    assert values["win rate over target"].estimate == pytest.approx(7 / 13)
    assert values["win rate over target"].n == 13


def test_lines_use_the_difficulties_in_the_outputs_file(tmp_path: Path) -> None:
    """Known difficulties identify the rate at equal length even with one pair per instruction, as in AlpacaEval."""
    rng = np.random.default_rng(0)
    difficulties = rng.normal(size=60)
    rows = [
        {"instruction": f"what is {i}?", "output": "x" * int(30 + 8 * d), "instruction_difficulty": d}
        for i, d in enumerate(difficulties)
    ]
    judged = [
        {
            "id": str(i),
            "category": "",
            "sample": 0,
            "turn": 0,
            "swapped": swapped,
            "status": "ok",
            "outcome": float(wins),
            "answer": "y" * int(longer),
            "other": rows[i]["output"],
        }
        for i, (wins, longer) in enumerate(
            zip(rng.random(60) < expit(difficulties), rng.integers(10, 50, 60), strict=True)
        )
        for swapped in (False, True)
    ]
    pd.DataFrame(judged).to_parquet(tmp_path / JUDGMENTS)
    file = tmp_path / "outputs.json"
    file.write_text(json.dumps(rows))
    settings = {"temperature": 0.0, "max_new_tokens": 5, "max_length": 120, "seed": 0, "min_coverage": 1.0}
    compared = AlpacaEval(outputs=str(file), limit=None, judge=FakeJudge(prefer_first), **settings)
    values = lines_by_name(compared, {"SFT": tmp_path, "Self-Contrast": tmp_path})
    unswapped = judged[::2]
    expected = length_controlled_win_rate(
        [row["outcome"] for row in unswapped],
        [len(row["answer"]) - len(row["other"]) for row in unswapped],
        [row["id"] for row in unswapped],
        difficulties,
        **vars(OPTIONS),
    )
    line = values["SFT", "win rate at equal length"]
    assert line.value.estimate == pytest.approx(expected.win_rate.estimate)
    assert values["Self-Contrast", "win rate less SFT's at equal length"].value.estimate == 0
    del rows[7]["instruction_difficulty"]
    file.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="1 of 60 instructions have no 'instruction_difficulty'"):
        compared.check(None)


def test_run_below_min_coverage_is_rejected(tmp_path: Path) -> None:
    judge = FakeJudge(
        lambda case: Judgment("api_error", None, "HTTP 500") if case.example.id == "a" else prefer_first(case)
    )
    with pytest.raises(UserError, match=r"6 of 8 .*75\.0%.*min_coverage=0\.9.*api_error 2.*HTTP"):
        benchmark(judge, min_coverage=0.9).run(tmp_path, subject(EXAMPLES, write_answers(tmp_path / "scores", ANSWERS)))


def test_alpaca_eval_compares_answers_with_those_in_the_outputs_file(tmp_path: Path) -> None:
    file = tmp_path / "outputs.json"
    rows = [{"instruction": f"what is the {i}?", "output": "x" * 10_000, "generator": "g"} for i in range(3)]
    file.write_text(json.dumps(rows))
    judge = FakeJudge(prefer_shorter)
    settings = {"temperature": 0.0, "max_new_tokens": 5, "max_length": 120, "seed": 0, "min_coverage": 1.0}
    compared = AlpacaEval(outputs=str(file), limit=2, judge=judge, **settings)
    compared.check(None)
    assert compared.own_prompts() == {"0": "what is the 0?", "1": "what is the 1?"}
    model = policy_folder(tmp_path / "policy")
    summary = compared.run(tmp_path, sample_subject(compared, [], tmp_path / "answers", model))
    assert summary["judgments"] == 4
    assert [c.example.prompt[0]["content"] for c in judge.cases if not c.swapped] == [
        "what is the 0?",
        "what is the 1?",
    ]
    assert lines(compared, tmp_path)["win rate over the file"] == 1
    before = settings_of(compared)
    assert settings_of(replace(compared, outputs=str(file.rename(tmp_path / "moved.json")))) == before


@pytest.mark.parametrize("wrong", [{"against": "gpt"}, {"samples": 0}, {"limit": 0}, {"min_coverage": 1.5}], ids=str)
def test_settings_out_of_range_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        benchmark(FakeJudge(prefer_first), **wrong)
