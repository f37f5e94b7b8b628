"""OutcomePairs of answers, judged in both orders, and what follows from the verdicts."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS, Line, Options, Subject
from selfcontrast.evaluation.benchmarks.judged import judged
from selfcontrast.evaluation.judges import Case, Judge
from selfcontrast.evaluation.statistics import (
    Controlled,
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
    folder: Path, name: str, judge: Judge, pairs: Iterable[Case], subject: Subject, least: float
) -> dict[str, Any]:
    """Judges pairs, each with the system's own answer first, in both orders; writes a row for each judgment."""
    cases = [case for pair in pairs for case in (pair, swapped(pair))]
    with judge.open(subject.surroundings) as judging:
        found, counts = judging(cases), unread(judging, cases)
    rows = []
    for case, judgment in zip(cases, found, strict=True):
        own, other = reversed(case.answers) if case.swapped else case.answers
        value = judgment.value
        rows.append(
            {
                "id": case.example.id,
                "category": case.example.category,
                "sample": case.sample,
                "turn": case.turn,
                "swapped": case.swapped,
                "question": case.dialogue(own)[-1]["content"],
                "answer": own[-1],
                "other": other[-1],
                "status": judgment.status,
                "outcome": value if value is None or not case.swapped else 1 - value,
                "reply": judgment.reply,
            }
        )
    pd.DataFrame(rows).astype({"outcome": "float64"}).to_parquet(folder / JUDGMENTS)
    return judged(name, judge, found, least, counts)


def swapped(case: Case) -> Case:
    """The same two answers, shown in the other order."""
    return replace(case, answers=case.answers[::-1], swapped=not case.swapped)


def both_orders(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per pair that was judged in both orders: `first` and `second` (where the system's own was shown),
    `longer` (by how many characters its answer is), and the mean `outcome`. A pair with one order alone is left out,
    or the place would count."""
    usable = frame[frame["status"] == "ok"]
    columns = ["id", "sample", "turn"]
    shown = {
        order: usable[usable["swapped"] == flag].set_index(columns) for order, flag in (("first", 0), ("second", 1))
    }
    pairs = shown["first"][["category", "outcome", "answer", "other"]].join(
        shown["second"]["outcome"].rename("second"), how="inner"
    )
    pairs = pairs.rename(columns={"outcome": "first"}).reset_index()
    pairs["longer"] = pairs["answer"].str.len() - pairs["other"].str.len()
    pairs["outcome"] = (pairs["first"] + pairs["second"]) / 2
    return pairs


def pairs_of(folders: Mapping[str, Path]) -> dict[str, pd.DataFrame]:
    """By system its judged pairs, as `both_orders` gives them."""
    return {name: both_orders(pd.read_parquet(folder / JUDGMENTS)) for name, folder in folders.items()}


def pair_lines(
    judged_pairs: Mapping[str, pd.DataFrame],
    against: str,
    options: Options,
    difficulties: Mapping[str, float] | None = None,
) -> list[Line]:
    """Per system the win rate, that at equal length, both less SFT's, and what the order of the answers did.

    Questions weigh alike, however many samples each has. `difficulties` are of the prompts by id; where they are not
    known they are estimated (`length_controlled_within_prompts`).
    """
    judged_pairs = {name: pairs for name, pairs in judged_pairs.items() if len(pairs)}
    controlled = _controlled(judged_pairs, options, difficulties)
    found: list[Line] = []
    for name, pairs in judged_pairs.items():
        questions = _by_question(pairs)
        values = [
            (f"win rate over {against}", "outcome"),
            ("verdicts that flip with the order", "flips"),
            ("first position's share", "favours_first"),
            ("ties", "ties"),
        ]
        own = [
            Line(name, what, "share", rate_interval(questions[column], questions["id"], confidence=options.confidence))
            for what, column in values
        ]
        own.insert(1, _line(name, EQUAL_LENGTH, "share", controlled.rates.get(name), options))
        found += own
        if name != SFT and SFT in judged_pairs:
            raw = _raw_difference(name, questions, _by_question(judged_pairs[SFT]), options)
            if not raw:
                continue
            found += raw
            what = f"win rate less SFT's {EQUAL_LENGTH.removeprefix('win rate ')}"
            found.append(_line(name, what, "difference", controlled.differences.get(name), options))
    return found


def _by_question(pairs: pd.DataFrame) -> pd.DataFrame:
    """A row per question and turn: the means over its samples. A tie is one in both orders."""
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
    every = pairs.assign(
        flips=flips(first, second),
        favours_first=favours_first(first, second),
        ties=np.isclose(first, 0.5) & np.isclose(second, 0.5),
    )
    columns = ["outcome", "flips", "favours_first", "ties"]
    return every.astype(dict.fromkeys(columns, "float64")).groupby(["id", "turn"], as_index=False)[columns].mean()


def _raw_difference(name: str, own: pd.DataFrame, base: pd.DataFrame, options: Options) -> list[Line]:
    """The difference of the win rates over the same opponent, on the questions and turns that both have judged."""
    both = own.merge(base, on=["id", "turn"], suffixes=("", "_base"))
    if both.empty:
        return []
    columns = (both["outcome"], both["outcome_base"], both["id"])
    return [Line(name, "win rate less SFT's", "difference", paired_difference(*columns, **vars(options)))]


def _controlled(
    judged_pairs: Mapping[str, pd.DataFrame], options: Options, difficulties: Mapping[str, float] | None
) -> WithinPrompts:
    """Rates at equal length and their differences from SFT's; empty where they are not identified."""
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
        found = length_controlled_within_prompts(systems, base, **vars(options))
        return found or WithinPrompts({}, {}, float("nan"))

    def columns(pairs: pd.DataFrame) -> tuple[Any, Any, Any, Any]:
        return pairs["outcome"], pairs["longer"], pairs["id"], pairs["id"].map(difficulties)

    rates: dict[str, Controlled] = {}
    differences = {}
    for name, pairs in judged_pairs.items():
        rates[name] = length_controlled_win_rate(*columns(pairs), **vars(options))
        if name != SFT and SFT in judged_pairs:
            base_pairs = judged_pairs[SFT]
            own, other = pairs[pairs["id"].isin(base_pairs["id"])], base_pairs[base_pairs["id"].isin(pairs["id"])]
            if len(own):
                differences[name] = length_controlled_difference(columns(own), columns(other), **vars(options))
    return WithinPrompts(rates, differences, float("nan"))


def _line(name: str, what: str, kind: str, controlled: Controlled | None, options: Options) -> Line:
    """A number at equal length, with what weakens it."""
    if controlled is None:
        return Line(name, what, kind, Interval(np.nan, np.nan, np.nan, 0, 0, options.confidence), NOT_IDENTIFIED)
    return Line(name, what, kind, controlled.interval, controlled.weakness)
