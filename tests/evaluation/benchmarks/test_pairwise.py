"""Comparisons in both orders, and what follows from them."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from measuring import Telling, answered, asked, subject
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


def shorter(case: Case) -> Judgment:
    """Prefers the shorter answer, wherever it stands."""
    first, second = (len(own[-1]) for own in case.answers)
    return Judgment("ok", 0.5 + 0.5 * ((second > first) - (first > second)))


def longer(case: Case) -> Judgment:
    first, second = (len(answers[-1]) for answers in case.answers)
    return Judgment("ok", 0.5 + 0.5 * ((first > second) - (first < second)))


def place(case: Case) -> Judgment:
    """Prefers whichever stands first."""
    return Judgment("ok", 1.0)


def benchmark(judge: Telling, **changes: Any) -> Pairwise:
    settings: dict[str, Any] = {"against": "target", "limit": None, "samples": 1, "min_coverage": 1.0, "judge": judge}
    return Pairwise(**{**settings, **changes})


def lines(of: Pairwise | AlpacaEval, folder: Path) -> dict[str, float]:
    return {line.what: line.value.estimate for line in of.lines({"SFT": folder}, OPTIONS)}


ANSWERS = {("a", 0): ["short"], ("b", 0): ["a longer answer"], ("c", 0): ["target c"], ("d", 0): ["x"]}


def test_every_pair_is_judged_in_both_orders(tmp_path: Path) -> None:
    """Targets have 8 characters: a and d win, c ties, b loses: (1 + 0 + 1/2 + 1) / 4."""
    judge = Telling(shorter)
    facts = benchmark(judge).run(tmp_path, subject(EXAMPLES, answered(tmp_path / "scores", ANSWERS)))
    assert [(c.example.id, c.answers, c.swapped) for c in judge.asked[:2]] == [
        ("a", (("short",), ("target a",)), False),
        ("a", (("target a",), ("short",)), True),
    ]
    assert facts["judgments"] == 8
    found = lines(benchmark(judge), tmp_path)
    assert found["win rate over target"] == 2.5 / 4
    assert found["verdicts that flip with the order"] == 0
    assert found["first position's share"] == 0.5
    assert found["ties"] == 0.25


def test_a_judge_that_goes_by_the_place_finds_nobody_better(tmp_path: Path) -> None:
    judge = Telling(place)
    benchmark(judge).run(tmp_path, subject(EXAMPLES, answered(tmp_path / "scores", ANSWERS)))
    found = lines(benchmark(judge), tmp_path)
    assert found["win rate over target"] == 0.5
    assert found["verdicts that flip with the order"] == 1
    assert found["first position's share"] == 1


def test_answers_are_compared_with_the_sft_models_of_the_same_sample(tmp_path: Path) -> None:
    judge = Telling(shorter)
    dialogue = example("e", "?", "!", turns=["one", "two"])
    own = answered(tmp_path / "own", {("e", 0): ["1", "22"], ("e", 1): ["1", "4444"]})
    base = answered(tmp_path / "base", {("e", 0): ["0", "333"], ("e", 1): ["0", "333"]})
    against = benchmark(judge, against="SFT", samples=5)
    against.run(tmp_path, subject([dialogue], own, label="Self-Contrast", baseline=base))
    assert [c.answers for c in judge.asked if not c.swapped] == [
        (("1", "22"), ("0", "333")),
        (("1", "4444"), ("0", "333")),
    ]
    assert judge.asked[0].turn == 1
    pairs = both_orders(pd.read_parquet(tmp_path / JUDGMENTS))
    assert list(pairs["outcome"]) == [1, 0]
    assert list(pairs["longer"]) == [-1, 1]


def test_prompts_without_target_are_compared_with_the_sft_model_alone(tmp_path: Path) -> None:
    bare = [replace(one, target="", has_target=False) for one in EXAMPLES[:2]]
    judge = Telling(shorter)
    scores = answered(tmp_path / "scores", ANSWERS)
    benchmark(judge).run(tmp_path, subject([*bare, *EXAMPLES[2:]], scores))
    assert {case.example.id for case in judge.asked} == {"c", "d"}
    assert benchmark(judge).nothing_in(bare) == "no prompt has a target to compare with"
    assert benchmark(judge, against="SFT").nothing_in(bare) is None


def test_a_pair_that_lacks_one_order_counts_for_nothing(tmp_path: Path) -> None:
    """Else the place would count: a's judgment with its own answer first is all that there is of a."""
    lost = lambda case: Judgment("unparsable", None) if case.swapped and case.example.id == "a" else place(case)  # noqa: E731
    judge = Telling(lost)
    facts = benchmark(judge, min_coverage=0.5).run(tmp_path, subject(EXAMPLES, answered(tmp_path / "scores", ANSWERS)))
    assert (facts["coverage"], facts["unparsable"]) == (7 / 8, 1)
    assert list(both_orders(pd.read_parquet(tmp_path / JUDGMENTS))["id"]) == ["b", "c", "d"]
    assert lines(benchmark(judge), tmp_path)["win rate over target"] == 0.5


def test_two_systems_against_the_same_opponent(tmp_path: Path) -> None:
    """On the three prompts that both have judged the one wins all, the other none: d, which SFT lacks, is left out."""
    judge = Telling(lambda case: shorter(case) if len(case.answers[0][-1]) != 9 else Judgment("unparsable", None))
    own = {(name, 0): ["x" if name != "d" else "much longer than the target"] for name in "abcd"}
    base = {(name, 0): ["longer than 8" if name != "d" else "123456789"] for name in "abcd"}
    for name, answers in (("SFT", base), ("Self-Contrast", own)):
        scores = answered(tmp_path / f"scores {name}", answers)
        (tmp_path / name).mkdir()
        benchmark(judge, min_coverage=0.5).run(tmp_path / name, subject(EXAMPLES, scores, label=name))
    folders = {name: tmp_path / name for name in ("SFT", "Self-Contrast")}
    found = {(line.system, line.what): line.value for line in benchmark(judge).lines(folders, OPTIONS)}
    difference = found["Self-Contrast", "win rate less SFT's"]
    assert (difference.estimate, difference.clusters) == (1, 3)
    assert found["Self-Contrast", "win rate less SFT's at equal length"].clusters == 3
    assert found["Self-Contrast", "win rate over target"].estimate == 0.75


def told(of: Pairwise | AlpacaEval, folders: dict[str, Path]) -> dict[tuple[str, str], Line]:
    return {(line.system, line.what): line for line in of.lines(folders, OPTIONS)}


def test_a_single_pair_per_prompt_has_no_rate_at_equal_length(tmp_path: Path) -> None:
    """How hard a prompt is cannot be told from what length does there."""
    judge = Telling(shorter)
    benchmark(judge).run(tmp_path, subject(EXAMPLES, answered(tmp_path / "scores", ANSWERS)))
    line = told(benchmark(judge), {"SFT": tmp_path})["SFT", "win rate at equal length"]
    assert math.isnan(line.value.estimate)
    assert line.note == "not identified: no prompt has two pairs of different length"
    assert cell(asdict(line)) == "– (not identified: no prompt has two pairs of different length)"


def test_several_samples_per_prompt_identify_the_rate_at_equal_length(tmp_path: Path) -> None:
    """A judge that goes by length alone finds neither better where both are as long."""
    prompts = [example(f"p{i:02}", "?", "x" * (20 + 5 * i)) for i in range(20)]
    answers = {(e.id, s): ["y" * (len(e.target) + 4 * s - 6)] for e in prompts for s in range(4)}
    judge = Telling(longer)
    benchmark(judge, samples=4).run(tmp_path, subject(prompts, answered(tmp_path / "scores", answers)))
    found = told(benchmark(judge, samples=4), {"SFT": tmp_path})
    line = found["SFT", "win rate at equal length"]
    assert found["SFT", "win rate over target"].value.estimate == 0.5
    assert line.value.estimate == pytest.approx(0.5, abs=0.02)
    assert line.note == "weak: the data hardly determine it"  # length decides every verdict
    assert line.value.low < 0.3 < 0.7 < line.value.high
    assert cell(asdict(line)).endswith("] (weak: the data hardly determine it)")


def test_a_pair_won_in_one_order_and_lost_in_the_other_is_no_tie(tmp_path: Path) -> None:
    """Its mean outcome is a half, and so is a tie's."""
    judge = Telling(lambda case: Judgment("ok", 0.5) if case.example.id == "a" else place(case))
    benchmark(judge).run(tmp_path, subject(EXAMPLES, answered(tmp_path / "scores", ANSWERS)))
    found = lines(benchmark(judge), tmp_path)
    assert found["ties"] == 0.25
    assert found["verdicts that flip with the order"] == 0.75


def test_questions_weigh_alike_without_repeating_rows() -> None:
    """Samples of 1 to 13 per question had a common multiple of 360,360 rows each."""
    rows = [
        {"id": f"q{n:02}", "turn": 0, "sample": s, "first": float(n % 2), "second": float(n % 2), "longer": s - n / 2}
        for n in range(1, 14)
        for s in range(n)
    ]
    pairs = pd.DataFrame(rows).assign(outcome=lambda frame: frame["first"])
    begun = {line.what: line.value for line in pair_lines({"SFT": pairs}, "target", OPTIONS)}
    assert begun["win rate over target"].estimate == pytest.approx(7 / 13)
    assert begun["win rate over target"].n == 13


def test_a_files_difficulties_are_used(tmp_path: Path) -> None:
    """The rate at equal length is that of AlpacaEval's model with them, though each instruction has a single pair."""
    rng = np.random.default_rng(0)
    hard = rng.normal(size=60)
    rows = [
        {"instruction": f"what is {i}?", "output": "x" * int(30 + 8 * hard[i]), "instruction_difficulty": hard[i]}
        for i in range(60)
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
        for i, (wins, longer) in enumerate(zip(rng.random(60) < expit(hard), rng.integers(10, 50, 60), strict=True))
        for swapped in (False, True)
    ]
    pd.DataFrame(judged).to_parquet(tmp_path / JUDGMENTS)
    file = tmp_path / "outputs.json"
    file.write_text(json.dumps(rows))
    how = {"temperature": 0.0, "max_new_tokens": 5, "max_length": 120, "seed": 0, "min_coverage": 1.0}
    of = AlpacaEval(outputs=str(file), limit=None, judge=Telling(place), **how)
    found = told(of, {"SFT": tmp_path, "Self-Contrast": tmp_path})
    one = judged[::2]
    expected = length_controlled_win_rate(
        [row["outcome"] for row in one],
        [len(row["answer"]) - len(row["other"]) for row in one],
        [row["id"] for row in one],
        hard,
        **vars(OPTIONS),
    )
    line = found["SFT", "win rate at equal length"]
    assert line.value.estimate == pytest.approx(expected.win_rate.estimate)
    assert found["Self-Contrast", "win rate less SFT's at equal length"].value.estimate == 0
    del rows[7]["instruction_difficulty"]
    file.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="1 of 60 instructions have no 'instruction_difficulty'"):
        of.check(None)


def test_too_few_judgments_are_no_result(tmp_path: Path) -> None:
    judge = Telling(lambda case: Judgment("api_error", None, "HTTP 500") if case.example.id == "a" else place(case))
    with pytest.raises(UserError, match=r"6 of 8 judgments can be used, 75\.0%.*min_coverage=0\.9.*api_error 2.*HTTP"):
        benchmark(judge, min_coverage=0.9).run(tmp_path, subject(EXAMPLES, answered(tmp_path / "scores", ANSWERS)))


def test_a_file_of_outputs_is_answered_and_compared(tmp_path: Path) -> None:
    file = tmp_path / "outputs.json"
    rows = [{"instruction": f"what is the {i}?", "output": "x" * 10_000, "generator": "g"} for i in range(3)]
    file.write_text(json.dumps(rows))
    judge = Telling(shorter)
    how = {"temperature": 0.0, "max_new_tokens": 5, "max_length": 120, "seed": 0, "min_coverage": 1.0}
    of = AlpacaEval(outputs=str(file), limit=2, judge=judge, **how)
    of.check(None)
    assert of.own_prompts() == {"0": "what is the 0?", "1": "what is the 1?"}
    model = policy_folder(tmp_path / "policy")
    facts = of.run(tmp_path, asked(of, [], tmp_path / "answers", model))
    assert facts["judgments"] == 4
    assert [c.example.prompt[0]["content"] for c in judge.asked if not c.swapped] == [
        "what is the 0?",
        "what is the 1?",
    ]
    assert lines(of, tmp_path)["win rate over the file"] == 1
    before = settings_of(of)
    assert settings_of(replace(of, outputs=str(file.rename(tmp_path / "moved.json")))) == before


@pytest.mark.parametrize("wrong", [{"against": "gpt"}, {"samples": 0}, {"limit": 0}, {"min_coverage": 1.5}], ids=str)
def test_a_comparison_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        benchmark(Telling(place), **wrong)
