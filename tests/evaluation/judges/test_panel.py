"""Several judges as one: their mean, how far they are apart, what they cost together, and what is asked for again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from judging import around, pair, reading, single
from measuring import Telling, answered, subject
from selfcontrast.config import build
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Options
from selfcontrast.evaluation.benchmarks.judged import judged
from selfcontrast.evaluation.benchmarks.pairwise import Pairwise
from selfcontrast.evaluation.judges import Case, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.budget import Account, Budget, Price
from selfcontrast.evaluation.judges.panel import Panel, combined, disagreement
from selfcontrast.evaluation.judges.reading import Done, Reading, Reply
from selfcontrast.evaluation.judges.verifier import VerifierJudge
from selfcontrast.report.benchmarks import _judged
from selfcontrast.store import settings_of
from tiny import ROOT, example

PRICE = Price(prompt=0.0, completion=1e6)  # 1 per token of a reply


@dataclass(frozen=True)
class Replying:
    """A judge that reads prompts and replies in words, through the ledger and the budget, as those of an API do."""

    name: str
    reply: str
    reading: Reading
    asked: list[str] = field(default_factory=list)

    def check(self, verifier: Any) -> None:
        if self.name == "absent":
            raise UserError("judge.model=absent: no such model")

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name}

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return self.reading.cost(judgments)

    @contextmanager
    def open(self, surroundings: JudgeContext) -> Iterator[Judging]:
        def ask(prompts: Sequence[str], attempt: int, account: Account, done: Done) -> None:
            for at, prompt in enumerate(prompts):
                paid = account.reserve(prompt, 2)
                self.asked.append(prompt)
                paid.settle(0, 2)
                done(at, Reply("stop", self.reply, 0, 2))

        yield lambda cases: self.reading.judge(cases, self.fingerprint(), surroundings, ask)


def replying(name: str, reply: str, price: Price | None = PRICE) -> Replying:
    return Replying(name, reply, reading(attempts=1, price=price))


def judge(panel: Panel, cases: Sequence[Case], surroundings: JudgeContext) -> list[Judgment]:
    with panel.open(surroundings) as judging:
        return judging(cases)


def test_the_verdict_is_the_mean_and_the_difference_is_told(tmp_path: Path) -> None:
    panel = Panel({"a": replying("a", "[[4]]"), "b": replying("b", "[[7]]"), "c": replying("c", "[[7]]")})
    found = judge(panel, [single("x"), single("y")], around(tmp_path))
    assert [judgment.value for judgment in found] == [6, 6]
    assert found[0].reply == "[4] [[4]]\n\n[7] [[7]]\n\n[7] [[7]]"
    assert disagreement(found) == {"judges": 3, "judges_apart": (3 + 3 + 0) / 3, "judges_disagree": 1}


def test_sides_are_compared_and_not_degrees() -> None:
    def panel(*values: float) -> Judgment:
        return combined([Judgment("ok", value) for value in values])

    verdicts = [panel(1, 0.75), panel(1, 0.25), panel(0.5, 0.5), panel(0, 0.5)]
    found = disagreement(verdicts)
    assert found["judges_apart"] == (0.25 + 0.75 + 0 + 0.5) / 4
    assert found["judges_disagree"] == 2 / 4
    assert disagreement([Judgment("ok", 1.0)]) == {}


def test_a_case_that_one_judge_cannot_judge_has_no_verdict(tmp_path: Path) -> None:
    panel = Panel({"a": replying("a", "[[A]]"), "b": replying("b", "well")})
    (found,) = judge(panel, [pair("x", "y")], around(tmp_path))
    assert (found.status, found.value, found.reply) == ("unparsable", None, "well")
    assert panel.cost([found]) == 4  # it was paid for all the same
    assert disagreement([found]) == {}


def test_each_judge_costs_its_own_price_from_one_budget(tmp_path: Path) -> None:
    cheap = Price(prompt=0.0, completion=0.5e6)
    panel = Panel({"a": replying("a", "[[A]]"), "b": replying("b", "[[B]]", cheap), "c": replying("c", "[[C]]", None)})
    budget = Budget(100.0)
    found = judge(panel, [pair("x", "y")], around(tmp_path, budget=budget))
    assert panel.cost(found) == 2 * 1 + 2 * 0.5
    assert panel.cost([]) == 0
    assert Panel({"c": replying("c", "", None), "d": replying("d", "", None)}).cost(found) is None
    with pytest.raises(UserError, match=r"evaluation\.max_cost=2\.5 is reached"):
        judge(panel, [pair("v", "w")], around(tmp_path / "other", budget=Budget(2.5)))


def test_what_was_judged_is_not_asked_for_again(tmp_path: Path) -> None:
    first, second = replying("a", "[[A]]"), replying("b", "[[B]]")
    panel = Panel({"a": first, "b": second})
    judge(panel, [pair("x", "y")], around(tmp_path))
    again = judge(panel, [pair("x", "y"), pair("x", "z")], around(tmp_path))
    assert (len(first.asked), len(second.asked)) == (2, 2)
    assert [judgment.value for judgment in again] == [0.5, 0.5]


def test_a_benchmark_of_a_panel_says_how_far_its_judges_are_apart(tmp_path: Path) -> None:
    judges = {name: Telling(lambda case, v=value: Judgment("ok", v)) for name, value in (("a", 1.0), ("b", 0.0))}
    settings: dict[str, Any] = {"against": "target", "limit": None, "samples": 1, "min_coverage": 1.0}
    benchmark = Pairwise(**settings, judge=Panel(judges))
    scores = answered(tmp_path / "scores", {("a", 0): ["one"]})
    facts = benchmark.run(tmp_path, subject([example("a", "what?", "that")], scores))
    assert (facts["judges"], facts["judges_apart"], facts["judges_disagree"]) == (2, 1, 1)
    assert list(pd.read_parquet(tmp_path / JUDGMENTS)["outcome"]) == [0.5, 0.5]
    found = {line.what: line.value.estimate for line in benchmark.lines({"SFT": tmp_path}, Options(0.95, 200, 0))}
    assert found["win rate over target"] == 0.5
    assert "2 judges, who differ by 1.00 on average and do not all say the same in 100.0%" in _judged({"SFT": facts})


def test_one_judge_is_no_panel_and_a_bad_one_is_named() -> None:
    with pytest.raises(UserError, match=r"judges=\['a'\]: a panel needs two"):
        Panel({"a": replying("a", "")})
    with pytest.raises(UserError, match=r"judge\.judges\.b: judge\.model=absent"):
        Panel({"a": replying("a", ""), "b": replying("absent", "")}).check(None)


def test_a_panel_with_the_same_judge_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"judges\.c is the same judge as judges\.a, .* leave it out"):
        Panel({"a": VerifierJudge(), "b": replying("b", ""), "c": VerifierJudge()})
    alike = Panel({"a": replying("a", "", PRICE), "b": replying("a", "", None)})  # from one ledger: asked once
    with pytest.raises(UserError, match=r"judges\.b is the same judge as judges\.a"):
        alike.check(None)
    Panel({"a": replying("a", ""), "b": replying("b", "")}).check(None)


def test_a_panel_is_composed_and_its_members_replaced() -> None:
    where = "evaluation.benchmarks.pairwise.judge"
    members = [f"{where}.judges.first.model=NAME", f"judge@{where}.judges.second=verifier"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        third = [f"+judge@{where}.judges.third=openai", f"{where}.judges.third.model=OTHER"]
        config = compose("config", [f"judge@{where}=panel", *members, *third])
        lacking = compose("config", [f"judge@{where}=panel", f"+{where}.judges.third={{}}", *members])
    panel = build(config.evaluation.benchmarks.pairwise, "pairwise").judge
    assert [type(judge).__name__ for judge in panel.judges.values()] == [
        "OpenAIJudge",
        "VerifierJudge",
        "OpenAIJudge",
    ]
    with pytest.raises(UserError, match=r"pairwise\.judge\.judges\.third: no judge; give it a _target_"):
        build(lacking.evaluation.benchmarks.pairwise, "pairwise")


def test_other_members_are_another_panel() -> None:
    one, other = (Panel({"a": replying("a", ""), "b": replying(name, "")}) for name in ("b", "c"))
    assert settings_of(one) != settings_of(other)


def test_a_single_judge_says_nothing_of_disagreement() -> None:
    assert "judges" not in judged("x", replying("a", ""), [Judgment("ok", 1.0)], 1.0)
