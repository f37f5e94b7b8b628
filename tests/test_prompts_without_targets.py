"""Test that jobs with prompts without targets are checked before any compute."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from selfcontrast.checks import check_targets, drop_ungradable
from selfcontrast.data.example import Example, Split
from selfcontrast.errors import UserError
from selfcontrast.filters.chosen import BestOfN, Consensus, Target, TargetAndBest
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import Everything, LeastSimilar, LowestRanked, Random
from selfcontrast.objectives import PlackettLuce, SelfContrast, Softmax
from tiny import example

WITH_TARGET = [example(f"w{i}", "A?", "target") for i in range(3)]
WITHOUT_TARGET = [replace(example(f"o{i}", "B?", ""), has_target=False) for i in range(5)]
REWARDS: Any = {"beta": 0.1, "nll_weight": 0.0, "length_normalised": False}
OBJECTIVE = SelfContrast(**REWARDS, rank_weights=None, label_smoothing=0.0)


class SftSettings:
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs


def filter_with(selector: Any, on_shortage: str = "drop_everywhere") -> Filter:
    return Filter(selector, 1, on_shortage, 3, None)


def parts_with(chosen: Any = None, settings: Any = None, objective: Any = OBJECTIVE, epochs: int = 1) -> dict[str, Any]:
    parts = {"chosen": chosen or Consensus(), "filter": settings or filter_with(Everything()), "objective": objective}
    return {**parts, "sft": SftSettings(epochs)}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            parts_with(Target()),
            r"chosen=Target needs targets, and 5 of 8 training prompts have none\. Use chosen=consensus",
        ),
        (parts_with(TargetAndBest()), "chosen=TargetAndBest needs targets"),
        (
            parts_with(settings=filter_with(LeastSimilar(0.5, "distinct"))),
            r"filter\.selector=LeastSimilar needs targets.*\. Use",
        ),
        (parts_with(BestOfN(), filter_with(Random(0.5, "samples"))), r"filter\.selector=Random needs targets"),
        (
            parts_with(settings=filter_with(LowestRanked(0.5, "distinct", ["similarity", "consensus"]))),
            "LowestRanked needs targets",
        ),
        (parts_with(settings=filter_with(Everything(), "refill")), r"filter\.on_shortage=refill needs targets"),
        (
            parts_with(objective=PlackettLuce(**REWARDS)),
            r"objective=PlackettLuce ranks by .*\. Use objective=self_contrast",
        ),
        (
            parts_with(objective=Softmax(**REWARDS, rank_weights=[2.0, 1.0])),
            r"objective\.rank_weights ranks by .*=null",
        ),
    ],
)
def test_check_targets_with_a_part_that_needs_targets_raises(parts: Any, message: str) -> None:
    check_targets(parts, WITH_TARGET, iterations=1)
    check_targets(parts, [*WITH_TARGET, *WITHOUT_TARGET], iterations=0)  # without iterations, targets are not used
    with pytest.raises(UserError, match=message):
        check_targets(parts, [*WITH_TARGET, *WITHOUT_TARGET], iterations=1)


@pytest.mark.parametrize(
    "selector", [Everything(), Random(0.5, "distinct"), LowestRanked(0.5, "distinct", ["consensus", "log_prob"])]
)
def test_check_targets_accepts_parts_that_need_no_targets(selector: Any) -> None:
    check_targets(parts_with(settings=filter_with(selector)), [*WITH_TARGET, *WITHOUT_TARGET], iterations=1)
    check_targets(parts_with(settings=filter_with(selector), epochs=0), WITHOUT_TARGET, iterations=1)


@pytest.mark.parametrize("iterations", [0, 1])
def test_check_targets_sft_without_any_target_raises(iterations: int) -> None:
    with pytest.raises(UserError, match=r"none of 5 training prompts has one\. Use sft=none"):
        check_targets(parts_with(), WITHOUT_TARGET, iterations)


def splits(test: list[Example]) -> dict[Split, list[Example]]:
    return {"train": [*WITH_TARGET, *WITHOUT_TARGET], "validation": WITHOUT_TARGET[:2], "test": test}


def test_drop_ungradable_with_verifier_keeps_all_prompts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        kept, dropped = drop_ungradable(splits([*WITH_TARGET, *WITHOUT_TARGET]), "test", verified=True)
    assert (kept, dropped) == (splits([*WITH_TARGET, *WITHOUT_TARGET]), [])
    (line,) = [message for message in caplog.messages if "split test" in message]
    assert line.startswith("data: 5 of 8 prompts of the split test have no target. The verifier, judges and KL")


def test_drop_ungradable_without_verifier_drops_held_out_prompts(caplog: pytest.LogCaptureFixture) -> None:
    kept, dropped = drop_ungradable(splits([*WITH_TARGET, *WITHOUT_TARGET]), "test", verified=False)
    assert kept == {"train": [*WITH_TARGET, *WITHOUT_TARGET], "validation": [], "test": WITH_TARGET}
    assert dropped == ["o0", "o1", "o0", "o1", "o2", "o3", "o4"]
    assert any("5 of 8 prompts of the split test" in message and "skips them" in message for message in caplog.messages)


def test_drop_ungradable_without_a_prompt_left_to_evaluate_raises() -> None:
    with pytest.raises(UserError, match=r"evaluation: 5 of 5 prompts of the split test have no target.*final_number"):
        drop_ungradable(splits(WITHOUT_TARGET), "test", verified=False)
    drop_ungradable(splits(WITHOUT_TARGET), "test", verified=True)


def test_drop_ungradable_with_all_targets_keeps_all_prompts(caplog: pytest.LogCaptureFixture) -> None:
    examples: dict[Split, list[Example]] = {"train": WITH_TARGET, "validation": WITH_TARGET, "test": WITH_TARGET}
    assert drop_ungradable(examples, "test", verified=False) == (examples, [])
    assert not caplog.messages
