"""Pairs of answers, judged in both orders, and what follows from the verdicts."""

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
    Interval,
    length_controlled_difference,
    length_controlled_win_rate,
    mean_interval,
    paired_difference,
    position_bias,
)
from selfcontrast.models.unread import unread

SFT = "SFT"


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


def pair_lines(judged_pairs: Mapping[str, pd.DataFrame], against: str, options: Options) -> list[Line]:
    """Per system the win rate, that at equal length, both less SFT's, and what the order of the answers did."""
    found: list[Line] = []
    for name, pairs in judged_pairs.items():
        outcomes, prompts, settings = pairs["outcome"].to_numpy(), pairs["id"].to_numpy(), vars(options)
        if not len(pairs):
            continue
        controlled = length_controlled_win_rate(outcomes, pairs["longer"].to_numpy(), prompts, **settings)
        means = " (the data hardly determine it)" if controlled.near_separation else ""
        bias = position_bias(pairs["first"], pairs["second"], prompts, **settings)
        values: list[tuple[str, Interval]] = [
            (f"win rate over {against}", mean_interval(outcomes, prompts, **settings)),
            (f"win rate at equal length{means}", controlled.win_rate),
            ("verdicts that flip with the order", bias.flip_rate),
            ("first position's share", bias.first_position_share),
            ("ties", mean_interval(np.isclose(outcomes, 0.5), prompts, **settings)),
        ]
        found += [Line(name, what, "share", value) for what, value in values]
        if name != SFT and SFT in judged_pairs:
            found += _differences(name, pairs, judged_pairs[SFT], options)
    return found


def _differences(name: str, own: pd.DataFrame, base: pd.DataFrame, options: Options) -> list[Line]:
    """Of both win rates over the same opponent, on the prompts that both have judged."""
    own, base = own[own["id"].isin(base["id"])], base[base["id"].isin(own["id"])]
    if not len(own):
        return []
    raw = paired_difference(own["outcome"], base["outcome"], own["id"], base["id"], **vars(options))
    columns = [(pairs["outcome"], pairs["longer"], pairs["id"]) for pairs in (own, base)]
    controlled = length_controlled_difference(*columns, **vars(options))
    return [
        Line(name, "win rate less SFT's", "difference", raw),
        Line(name, "win rate less SFT's at equal length", "difference", controlled),
    ]
