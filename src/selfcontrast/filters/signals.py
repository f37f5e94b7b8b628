"""Measure how well each signal of a selector separates good candidates from bad ones, if a scorer exists."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selfcontrast.filters.pool import Floats, Indices

FRACTIONS = (0.75, 0.5, 0.25, 0.125)  # fractions of a prompt's distinct candidates that are kept, lowest signal first
SIMILARITY, CONSENSUS, LOG_PROB, RANK_SUM = "similarity", "consensus", "log_prob", "rank_sum"
SIGNALS = (SIMILARITY, CONSENSUS, LOG_PROB)  # signals whose ranks can be summed


def ranks(values: Floats, groups: NDArray[Any] | None = None) -> Floats:
    """Return the rank of each value within its group [n], from 1 for the lowest; ties get their mean rank."""
    if groups is None:
        return _ranks_by(np.argsort(values, kind="stable"), values, np.zeros(len(values), dtype=np.int8))
    return _ranks_by(np.lexsort((values, groups)), values, groups)


def _ranks_by(order: Indices, values: Floats, groups: NDArray[Any]) -> Floats:
    """Return ranks within groups, given the order by group and value."""
    sorted_values, sorted_groups = values[order], groups[order]
    begins_group = np.r_[True, sorted_groups[1:] != sorted_groups[:-1]][: len(order)]
    begins_run = begins_group | np.r_[True, sorted_values[1:] != sorted_values[:-1]][: len(order)]  # of equal values
    first = np.flatnonzero(begins_run)
    last = np.r_[first[1:], len(order)] - 1
    group_start = np.flatnonzero(begins_group)[np.cumsum(begins_group) - 1]
    result = np.empty(len(order))
    result[order] = ((first + last) / 2)[np.cumsum(begins_run) - 1] - group_start + 1
    return result


def signal_table(candidates: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row per signal: its AUC for "good", and the false-negative rate at each of `FRACTIONS`.

    The signals are the similarity to the target, the consensus, the sampler's log-probability per token, and the sum of
    their ranks. Like a selector, the table ranks only candidates of the same prompt: a signal becomes
    (rank - 1/2) / n, with the rank among the prompt's n distinct candidates. Ties get their mean rank.

    `auc`: the fraction of all pairs of a good and a bad candidate, across prompts, in which the good one has the higher
    value. Ties count one half; None if all are good or all are bad. Prompts differ in how many of their candidates are
    good, so even a perfect signal may stay below 1.
    `false_negatives`: for each fraction a, keep the floor(a·n) candidates of every prompt with the lowest signal; the
    value is the fraction of good ones among all that are kept. Ties: the least similar are kept. None if none is kept.

    If the log-probability or similarity of any candidate is unknown, the table and the sum leave that signal out.

    Args:
        candidates: one row per distinct candidate, from the filter stage: grouped by prompt, ascending by similarity.

    Returns:
        The rows; empty without a scorer. With a reward model, prompts without target do not count.
    """
    candidates = candidates[candidates["good"].notna()]
    if candidates.empty:
        return []
    prompt, good = candidates["prompt"].to_numpy(), candidates["good"].to_numpy(dtype=bool)
    signals = {name: candidates[name].to_numpy() for name in (SIMILARITY, CONSENSUS) if candidates[name].notna().all()}
    if candidates[LOG_PROB].notna().all():
        signals[LOG_PROB] = candidates[LOG_PROB].to_numpy() / np.maximum(candidates["tokens"].to_numpy(), 1)
    starts = np.flatnonzero(np.r_[True, prompt[1:] != prompt[:-1]])
    counts = np.diff(np.r_[starts, len(prompt)])
    sizes, position = np.repeat(counts, counts), np.arange(len(prompt)) - np.repeat(starts, counts)
    rows, total = list[dict[str, Any]](), np.zeros(len(prompt))
    for name in (*signals, RANK_SUM):
        values = signals.get(name, total)
        order = np.lexsort((values, prompt))  # stable, so of equal values the least similar candidate comes first
        prompt_ranks = _ranks_by(order, values, prompt)
        total = total + prompt_ranks
        false = _false_negatives(good[order], position, sizes)
        rows.append({"signal": name, "auc": auc((prompt_ranks - 0.5) / sizes, good), "false_negatives": false})
    return rows


def auc(values: Floats, good: NDArray[np.bool_]) -> float | None:
    """Return the fraction of good-bad pairs in which the good one has the higher value; ties count one half."""
    count = int(good.sum())
    pairs = count * (len(good) - count)
    return float((ranks(values)[good].sum() - count * (count + 1) / 2) / pairs) if pairs else None


def _false_negatives(good: NDArray[np.bool_], position: Indices, sizes: Indices) -> list[float | None]:
    """Return the fraction of good candidates among those kept, per fraction of `FRACTIONS`.

    Args:
        good: ordered by prompt and, within it, by ascending signal [n].
        position: position within the prompt, from 0 [n].
        sizes: number of candidates of the prompt [n].
    """
    rates: list[float | None] = []
    for fraction in FRACTIONS:
        kept = position < np.floor(fraction * sizes + 1e-9)
        rates.append(float(good[kept].mean()) if kept.any() else None)
    return rates
