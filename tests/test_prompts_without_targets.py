"""What a job does with prompts without targets is decided, and said, before anything is computed."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from selfcontrast.checks import check_targets, with_grades
from selfcontrast.data.example import Example, Split
from selfcontrast.errors import UserError
from selfcontrast.filters.chosen import BestOfN, Consensus, Target, TargetAndBest
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import Everything, LeastSimilar, LowestRanked, Random
from selfcontrast.objectives import PlackettLuce, SelfContrast, Softmax
from tiny import example

WITH = [example(f"w{i}", "A?", "target") for i in range(3)]
WITHOUT = [replace(example(f"o{i}", "B?", ""), has_target=False) for i in range(5)]
REWARDS: Any = {"beta": 0.1, "nll_weight": 0.0, "length_normalised": False}
OBJECTIVE = SelfContrast(**REWARDS, rank_weights=None, label_smoothing=0.0)


class Epochs:
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs


def own(selector: Any, on_shortage: str = "drop_everywhere") -> Filter:
    return Filter(selector, 1, on_shortage, 3, None)


def job(chosen: Any = None, settings: Any = None, objective: Any = OBJECTIVE, epochs: int = 1) -> dict[str, Any]:
    found = {"chosen": chosen or Consensus(), "filter": settings or own(Everything()), "objective": objective}
    return {**found, "sft": Epochs(epochs)}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (job(Target()), "chosen=Target needs targets, and 5 of 8 training prompts have none: use chosen=consensus"),
        (job(TargetAndBest()), "chosen=TargetAndBest needs targets"),
        (
            job(settings=own(LeastSimilar(0.5, "distinct"))),
            r"filter\.selector=LeastSimilar needs targets.*: use",
        ),
        (job(BestOfN(), own(Random(0.5, "samples"))), r"filter\.selector=Random needs targets"),
        (job(settings=own(LowestRanked(0.5, "distinct", ["similarity", "consensus"]))), "LowestRanked needs targets"),
        (job(settings=own(Everything(), "refill")), r"filter\.on_shortage=refill needs targets"),
        (job(objective=PlackettLuce(**REWARDS)), "objective=PlackettLuce goes by .*: use objective=self_contrast"),
        (job(objective=Softmax(**REWARDS, rank_weights=[2.0, 1.0])), r"objective\.rank_weights goes by .*=null"),
    ],
)
def test_check_targets_what_needs_a_target_is_refused_by_name(parts: Any, message: str) -> None:
    check_targets(parts, WITH, rounds=1)
    check_targets(parts, [*WITH, *WITHOUT], rounds=0)  # nothing of it is used
    with pytest.raises(UserError, match=message):
        check_targets(parts, [*WITH, *WITHOUT], rounds=1)


@pytest.mark.parametrize(
    "selector", [Everything(), Random(0.5, "distinct"), LowestRanked(0.5, "distinct", ["consensus", "log_prob"])]
)
def test_check_targets_what_needs_no_target_is_accepted(selector: Any) -> None:
    check_targets(job(settings=own(selector)), [*WITH, *WITHOUT], rounds=1)
    check_targets(job(settings=own(selector), epochs=0), WITHOUT, rounds=1)


@pytest.mark.parametrize("rounds", [0, 1])
def test_check_targets_fine_tuning_without_any_target_is_refused(rounds: int) -> None:
    with pytest.raises(UserError, match="sft trains on targets, and none of 5 training prompts has one: use sft=none"):
        check_targets(job(), WITHOUT, rounds)


def splits(test: list[Example]) -> dict[Split, list[Example]]:
    return {"train": [*WITH, *WITHOUT], "validation": WITHOUT[:2], "test": test}


def test_with_grades_a_verifier_keeps_every_prompt_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        kept, left_out = with_grades(splits([*WITH, *WITHOUT]), "test", verified=True)
    assert (kept, left_out) == (splits([*WITH, *WITHOUT]), [])
    (line,) = [message for message in caplog.messages if "split test" in message]
    assert line.startswith("data: 5 of 8 prompts of the split test have no target: the verifier, the judges and KL")


def test_with_grades_without_verifier_held_out_prompts_need_targets(caplog: pytest.LogCaptureFixture) -> None:
    kept, left_out = with_grades(splits([*WITH, *WITHOUT]), "test", verified=False)
    assert kept == {"train": [*WITH, *WITHOUT], "validation": [], "test": WITH}
    assert left_out == ["o0", "o1", "o0", "o1", "o2", "o3", "o4"]
    assert any("5 of 8 prompts of the split test" in message and "left out" in message for message in caplog.messages)


def test_with_grades_nothing_to_evaluate_is_refused_before_compute() -> None:
    with pytest.raises(UserError, match=r"evaluation: 5 of 5 prompts of the split test have no target.*final_number"):
        with_grades(splits(WITHOUT), "test", verified=False)
    with_grades(splits(WITHOUT), "test", verified=True)


def test_with_grades_where_every_prompt_has_a_target_nothing_changes(caplog: pytest.LogCaptureFixture) -> None:
    every: dict[Split, list[Example]] = {"train": WITH, "validation": WITH, "test": WITH}
    assert with_grades(every, "test", verified=False) == (every, [])
    assert not caplog.messages
