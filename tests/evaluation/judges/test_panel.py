"""Test panels of judges: their mean, disagreement, cost and reuse of judgments."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from benchmark_cases import FakeJudge, subject, write_answers
from judge_cases import judge_context, pair, reply_settings, single
from selfcontrast.config import build
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Options
from selfcontrast.evaluation.benchmarks.judge_benchmark import summarize_judgments
from selfcontrast.evaluation.benchmarks.pairwise import Pairwise
from selfcontrast.evaluation.judges import Case, JudgeContext, Judging, Judgment
from selfcontrast.evaluation.judges.budget import Account, Budget, Price
from selfcontrast.evaluation.judges.panel import Panel, combine, disagreement
from selfcontrast.evaluation.judges.replies import Reply, ReplySettings, StoreReply
from selfcontrast.evaluation.judges.verifier import VerifierJudge
from selfcontrast.report.benchmarks import _judgments_sentence
from selfcontrast.store import settings_of
from tiny import ROOT, example

PRICE = Price(prompt=0.0, completion=1e6)  # 1 per token of a reply


@dataclass(frozen=True)
class TextJudge:
    """A judge that replies in text, with ledger and budget, like a judge behind an API."""

    name: str
    reply: str
    reading: ReplySettings
    prompts: list[str] = field(default_factory=list)

    def check(self, verifier: Any) -> None:
        if self.name == "absent":
            raise UserError("judge.model=absent: no such model")

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name}

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        return self.reading.cost(judgments)

    @contextmanager
    def open(self, context: JudgeContext) -> Iterator[Judging]:
        def ask(prompts: Sequence[str], attempt: int, account: Account, store: StoreReply) -> None:
            for index, prompt in enumerate(prompts):
                request = account.reserve(prompt, 2)
                self.prompts.append(prompt)
                request.settle(0, 2)
                store(index, Reply("stop", self.reply, 0, 2))

        yield lambda cases: self.reading.judge(cases, self.fingerprint(), context, ask)


def text_judge(name: str, reply: str, price: Price | None = PRICE) -> TextJudge:
    return TextJudge(name, reply, reply_settings(attempts=1, price=price))


def judge(panel: Panel, cases: Sequence[Case], context: JudgeContext) -> list[Judgment]:
    with panel.open(context) as judging:
        return judging(cases)


def test_panel_value_is_the_mean_and_disagreement_is_reported(tmp_path: Path) -> None:
    panel = Panel({"a": text_judge("a", "[[4]]"), "b": text_judge("b", "[[7]]"), "c": text_judge("c", "[[7]]")})
    judgments = judge(panel, [single("x"), single("y")], judge_context(tmp_path))
    assert [judgment.value for judgment in judgments] == [6, 6]
    assert judgments[0].reply == "[4] [[4]]\n\n[7] [[7]]\n\n[7] [[7]]"
    assert disagreement(judgments) == {"judges": 3, "judges_apart": (3 + 3 + 0) / 3, "judges_disagree": 1}


def test_disagreement_compares_winners_not_degrees() -> None:
    def panel(*values: float) -> Judgment:
        return combine([Judgment("ok", value) for value in values])

    verdicts = [panel(1, 0.75), panel(1, 0.25), panel(0.5, 0.5), panel(0, 0.5)]
    numbers = disagreement(verdicts)
    assert numbers["judges_apart"] == (0.25 + 0.75 + 0 + 0.5) / 4
    assert numbers["judges_disagree"] == 2 / 4
    assert disagreement([Judgment("ok", 1.0)]) == {}


def test_panel_with_one_failed_judge_has_a_cost_and_no_value(tmp_path: Path) -> None:
    panel = Panel({"a": text_judge("a", "[[A]]"), "b": text_judge("b", "well")})
    (judgment,) = judge(panel, [pair("x", "y")], judge_context(tmp_path))
    assert (judgment.status, judgment.value, judgment.reply) == ("unparsable", None, "well")
    assert panel.cost([judgment]) == 4  # failed judgments are paid too
    assert disagreement([judgment]) == {}


def test_panel_members_have_their_own_prices_and_one_budget(tmp_path: Path) -> None:
    cheap = Price(prompt=0.0, completion=0.5e6)
    panel = Panel(
        {"a": text_judge("a", "[[A]]"), "b": text_judge("b", "[[B]]", cheap), "c": text_judge("c", "[[C]]", None)}
    )
    budget = Budget(100.0)
    judgments = judge(panel, [pair("x", "y")], judge_context(tmp_path, budget=budget))
    assert panel.cost(judgments) == 2 * 1 + 2 * 0.5
    assert panel.cost([]) == 0
    assert Panel({"c": text_judge("c", "", None), "d": text_judge("d", "", None)}).cost(judgments) is None
    with pytest.raises(UserError, match=r"evaluation\.max_cost=2\.5 is reached"):
        judge(panel, [pair("v", "w")], judge_context(tmp_path / "other", budget=Budget(2.5)))


def test_panel_reuses_judgments(tmp_path: Path) -> None:
    first, second = text_judge("a", "[[A]]"), text_judge("b", "[[B]]")
    panel = Panel({"a": first, "b": second})
    judge(panel, [pair("x", "y")], judge_context(tmp_path))
    judgments = judge(panel, [pair("x", "y"), pair("x", "z")], judge_context(tmp_path))
    assert (len(first.prompts), len(second.prompts)) == (2, 2)
    assert [judgment.value for judgment in judgments] == [0.5, 0.5]


def test_benchmark_with_a_panel_reports_disagreement(tmp_path: Path) -> None:
    judges = {name: FakeJudge(lambda case, v=value: Judgment("ok", v)) for name, value in (("a", 1.0), ("b", 0.0))}
    settings: dict[str, Any] = {"against": "target", "limit": None, "samples": 1, "min_coverage": 1.0}
    benchmark = Pairwise(**settings, judge=Panel(judges))
    scores = write_answers(tmp_path / "scores", {("a", 0): ["one"]})
    summary = benchmark.run(tmp_path, subject([example("a", "what?", "that")], scores))
    assert (summary["judges"], summary["judges_apart"], summary["judges_disagree"]) == (2, 1, 1)
    assert list(pd.read_parquet(tmp_path / JUDGMENTS)["outcome"]) == [0.5, 0.5]
    values = {line.what: line.value.estimate for line in benchmark.lines({"SFT": tmp_path}, Options(0.95, 200, 0))}
    assert values["win rate over target"] == 0.5
    sentence = _judgments_sentence({"SFT": summary})
    assert "2 judges, who differ by 1.00 on average and disagree in 100.0%" in sentence


def test_panel_of_one_judge_or_with_an_unusable_judge_is_rejected() -> None:
    with pytest.raises(UserError, match=r"judges=\['a'\]"):
        Panel({"a": text_judge("a", "")})
    with pytest.raises(UserError, match=r"judge\.judges\.b: judge\.model=absent"):
        Panel({"a": text_judge("a", ""), "b": text_judge("absent", "")}).check(None)


def test_panel_with_the_same_judge_twice_is_rejected() -> None:
    with pytest.raises(UserError, match=r"judges\.c .*judges\.a "):
        Panel({"a": VerifierJudge(), "b": text_judge("b", ""), "c": VerifierJudge()})
    same = Panel({"a": text_judge("a", "", PRICE), "b": text_judge("a", "", None)})  # they share a ledger
    with pytest.raises(UserError, match=r"judges\.b .*judges\.a "):
        same.check(None)
    Panel({"a": text_judge("a", ""), "b": text_judge("b", "")}).check(None)


def test_panel_config_replaces_and_adds_members() -> None:
    where = "evaluation.benchmarks.pairwise.judge"
    members = [f"{where}.judges.first.model=NAME", f"judge@{where}.judges.second=verifier"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        third = [f"+judge@{where}.judges.third=openai", f"{where}.judges.third.model=OTHER"]
        config = compose("config", [f"judge@{where}=panel", *members, *third])
        without_target = compose("config", [f"judge@{where}=panel", f"+{where}.judges.third={{}}", *members])
    panel = build(config.evaluation.benchmarks.pairwise, "pairwise").judge
    assert [type(judge).__name__ for judge in panel.judges.values()] == [
        "OpenAIJudge",
        "VerifierJudge",
        "OpenAIJudge",
    ]
    with pytest.raises(UserError, match=r"pairwise\.judge\.judges\.third: .*_target_"):
        build(without_target.evaluation.benchmarks.pairwise, "pairwise")


def test_panel_settings_change_with_a_member() -> None:
    panel, other = (Panel({"a": text_judge("a", ""), "b": text_judge(name, "")}) for name in ("b", "c"))
    assert settings_of(panel) != settings_of(other)


def test_summarize_judgments_single_judge_has_no_disagreement() -> None:
    assert "judges" not in summarize_judgments("x", text_judge("a", ""), [Judgment("ok", 1.0)], 1.0)
