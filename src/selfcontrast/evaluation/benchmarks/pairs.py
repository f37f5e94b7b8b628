"""Judge pairs of answers in both orders and compute win rates, order effects and length-controlled rates."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options, Subject
from selfcontrast.evaluation.benchmarks.judge_benchmark import summarize_judgments
from selfcontrast.evaluation.judges import Case, Judge
from selfcontrast.evaluation.statistics import (
    ControlledRate,
    Interval,
    OutcomePairs,
    WithinPrompts,
    length_controlled_difference,
    length_controlled_win_rate,
    length_controlled_within_prompts,
    paired_difference,
    rate_interval,
)
from selfcontrast.evaluation.statistics.position import favours_first, flips
from selfcontrast.models.truncation import unread

SFT = "SFT"
EQUAL_LENGTH = "win rate at equal length"
NOT_IDENTIFIED = "not identified: no prompt has two pairs of different length"


def judge_pairs(
    folder: Path, name: str, judge: Judge, pairs: Iterable[Case], subject: Subject, min_coverage: float
) -> dict[str, Any]:
    """Judge pairs in both orders and write one row per judgment. Each of `pairs` has the system's answer first."""
    cases = [case for pair in pairs for case in (pair, swap(pair))]
    with judge.open(subject.context) as judging:
        judgments, counts = judging(cases), unread(judging, cases)
    rows = []
    for case, judgment in zip(cases, judgments, strict=True):
        answer, opponent = reversed(case.answers) if case.swapped else case.answers
        value = judgment.value
        rows.append(
            {
                "id": case.example.id,
                "category": case.example.category,
                "sample": case.sample,
                "turn": case.turn,
                "swapped": case.swapped,
                "question": case.dialogue(answer)[-1]["content"],
                "answer": answer[-1],
                "other": opponent[-1],
                "status": judgment.status,
                "outcome": value if value is None or not case.swapped else 1 - value,
                "reply": judgment.reply,
            }
        )
    pd.DataFrame(rows).astype({"outcome": "float64"}).to_parquet(folder / JUDGMENTS)
    return summarize_judgments(name, judge, judgments, min_coverage, counts)


def swap(case: Case) -> Case:
    """Return the case with its two answers shown in the other order."""
    return replace(case, answers=case.answers[::-1], swapped=not case.swapped)


def both_orders(frame: pd.DataFrame) -> pd.DataFrame:
    """Join the two judgments of each pair into one row. A pair with only one usable order is left out.

    The effect of position cancels only over both orders.

    Columns:
        first: the system's outcome with its answer shown first.
        second: the system's outcome with its answer shown second.
        outcome: the mean of `first` and `second`.
        longer: how many characters longer the system's answer is than the other.
    """
    usable = frame[frame["status"] == "ok"]
    columns = ["id", "sample", "turn"]
    by_order = {
        order: usable[usable["swapped"] == flag].set_index(columns) for order, flag in (("first", 0), ("second", 1))
    }
    pairs = by_order["first"][["category", "outcome", "answer", "other"]].join(
        by_order["second"]["outcome"].rename("second"), how="inner"
    )
    pairs = pairs.rename(columns={"outcome": "first"}).reset_index()
    pairs["longer"] = pairs["answer"].str.len() - pairs["other"].str.len()
    pairs["outcome"] = (pairs["first"] + pairs["second"]) / 2
    return pairs


def pairs_of(folders: Mapping[str, Path]) -> dict[str, pd.DataFrame]:
    """Read each system's judged pairs, as rows of `both_orders`."""
    return {name: both_orders(pd.read_parquet(folder / JUDGMENTS)) for name, folder in folders.items()}


def pair_lines(
    judged_pairs: Mapping[str, pd.DataFrame],
    against: str,
    options: Options,
    difficulties: Mapping[str, float] | None = None,
) -> list[Line]:
    """Return each system's win rate, raw and at equal length, their differences from SFT's, and the effects of order.

    All questions weigh the same; their number of samples does not matter.

    Args:
        difficulties: difficulties of the prompts, by id; None estimates them (`length_controlled_within_prompts`).
    """
    judged_pairs = {name: pairs for name, pairs in judged_pairs.items() if len(pairs)}
    controlled = _controlled(judged_pairs, options, difficulties)
    lines: list[Line] = []
    for name, pairs in judged_pairs.items():
        questions = _by_question(pairs)
        values = [
            (f"win rate over {against}", "outcome"),
            ("verdicts that flip with the order", "flips"),
            ("first position's share", "favours_first"),
            ("ties", "ties"),
        ]
        system_lines = [
            Line(name, what, "share", rate_interval(questions[column], questions["id"], confidence=options.confidence))
            for what, column in values
        ]
        system_lines.insert(1, _line(name, EQUAL_LENGTH, "share", controlled.rates.get(name), options))
        lines += system_lines
        if name != SFT and SFT in judged_pairs:
            raw = _raw_difference(name, questions, _by_question(judged_pairs[SFT]), options)
            if not raw:
                continue
            lines += raw
            what = f"win rate less SFT's {EQUAL_LENGTH.removeprefix('win rate ')}"
            lines.append(_line(name, what, "difference", controlled.differences.get(name), options))
    return lines


def _by_question(pairs: pd.DataFrame) -> pd.DataFrame:
    """Average over samples: return one row per question and turn. A pair is a tie only if both orders are ties."""
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
    rows = pairs.assign(
        flips=flips(first, second),
        favours_first=favours_first(first, second),
        ties=np.isclose(first, 0.5) & np.isclose(second, 0.5),
    )
    columns = ["outcome", "flips", "favours_first", "ties"]
    return rows.astype(dict.fromkeys(columns, "float64")).groupby(["id", "turn"], as_index=False)[columns].mean()


def _raw_difference(name: str, system: pd.DataFrame, base: pd.DataFrame, options: Options) -> list[Line]:
    """Return the difference of win rates over the same opponent, on the turns for which both systems have judgments."""
    paired = system.merge(base, on=["id", "turn"], suffixes=("", "_base"))
    if paired.empty:
        return []
    columns = (paired["outcome"], paired["outcome_base"], paired["id"])
    return [Line(name, "win rate less SFT's", "difference", paired_difference(*columns, **vars(options)))]


def _controlled(
    judged_pairs: Mapping[str, pd.DataFrame], options: Options, difficulties: Mapping[str, float] | None
) -> WithinPrompts:
    """Return rates at equal length and their differences from SFT's. Rates that are not identified are left out."""
    if not judged_pairs:
        return WithinPrompts({}, {}, float("nan"))
    if difficulties is None:
        systems = {
            name: OutcomePairs(
                pairs["outcome"], pairs["longer"], pairs["id"] + "/" + pairs["turn"].astype(str), pairs["id"]
            )
            for name, pairs in judged_pairs.items()
        }
        base = SFT if SFT in systems else None
        controlled = length_controlled_within_prompts(systems, base, **vars(options))
        return controlled or WithinPrompts({}, {}, float("nan"))

    def columns(pairs: pd.DataFrame) -> tuple[Any, Any, Any, Any]:
        return pairs["outcome"], pairs["longer"], pairs["id"], pairs["id"].map(difficulties)

    rates: dict[str, ControlledRate] = {}
    differences = {}
    for name, pairs in judged_pairs.items():
        rates[name] = length_controlled_win_rate(*columns(pairs), **vars(options))
        if name != SFT and SFT in judged_pairs:
            base_pairs = judged_pairs[SFT]
            common, common_base = (
                pairs[pairs["id"].isin(base_pairs["id"])],
                base_pairs[base_pairs["id"].isin(pairs["id"])],
            )
            if len(common):
                differences[name] = length_controlled_difference(columns(common), columns(common_base), **vars(options))
    return WithinPrompts(rates, differences, float("nan"))


def _line(name: str, what: str, kind: str, controlled: ControlledRate | None, options: Options) -> Line:
    """Return the line of a number at equal length, with a note if it is weak or missing."""
    if controlled is None:
        return Line(name, what, kind, Interval(np.nan, np.nan, np.nan, 0, 0, options.confidence), NOT_IDENTIFIED)
    return Line(name, what, kind, controlled.interval, controlled.weakness)
