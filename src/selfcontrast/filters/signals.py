"""How well each signal that a selector may go by tells good candidates from bad ones, where something scores them."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selfcontrast.filters.select import Floats, Indices

SHARES = (0.75, 0.5, 0.25, 0.125)  # of a prompt's distinct candidates that are kept, those lowest by the signal
SIMILARITY, CONSENSUS, LOG_PROB, RANK_SUM = "similarity", "consensus", "log_prob", "rank_sum"
SIGNALS = (SIMILARITY, CONSENSUS, LOG_PROB)  # what ranks can be summed of


def ranks(values: Floats, groups: NDArray[Any] | None = None) -> Floats:
    """Return the rank of each value within its group [n], from 1 for the lowest; equal ones have their mean rank."""
    if groups is None:
        return _ranked(values, np.zeros(len(values), dtype=np.int8), np.argsort(values, kind="stable"))
    return _ranked(values, groups, np.lexsort((values, groups)))


def _ranked(values: Floats, groups: NDArray[Any], order: Indices) -> Floats:
    """Ranks, for the order by group and, within it, by value."""
    ordered, owners = values[order], groups[order]
    begins = np.r_[True, owners[1:] != owners[:-1]][: len(order)]  # of a group
    runs = begins | np.r_[True, ordered[1:] != ordered[:-1]][: len(order)]  # of equal values in it
    first = np.flatnonzero(runs)
    last = np.r_[first[1:], len(order)] - 1
    group_start = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    found = np.empty(len(order))
    found[order] = ((first + last) / 2)[np.cumsum(runs) - 1] - group_start + 1
    return found


def signal_table(seen: pd.DataFrame) -> list[dict[str, Any]]:
    """Return per signal a row with its AUC for "good" and the false negatives at each of `SHARES`.

    The signals are the similarity to the target, the consensus, the sampler's log-probability per token, and the sum
    of the ranks of these. A selector compares candidates of one prompt with each other, and so does this: a signal
    counts as its rank among the prompt's n distinct candidates, (rank - 1/2) / n, equal ones with their mean rank.

    `auc`: of all pairs of a good and a bad candidate, of whichever prompts, the share in which the good one has the
    higher such rank; ties count one half; None where all are good or all are bad. As prompts differ in how many of
    their candidates are good, even a perfect signal may stay below 1.
    `false_negatives`: per share a, the good ones among the floor(a·n) candidates of each prompt that are lowest by the
    signal, all prompts together; of equal ones the least similar are kept. None where nothing is kept.

    The log-probability is left out, of the sum too, where that of a candidate is unknown, and so is the similarity.

    Args:
        seen: a row per distinct candidate, as the filter stage has it: each prompt's together, ascending by similarity.

    Returns:
        Nothing where nothing scores. A prompt without target does not count where a reward model scores.
    """
    seen = seen[seen["good"].notna()]
    if seen.empty:
        return []
    prompt, good = seen["prompt"].to_numpy(), seen["good"].to_numpy(dtype=bool)
    signals = {name: seen[name].to_numpy() for name in (SIMILARITY, CONSENSUS) if seen[name].notna().all()}
    if seen[LOG_PROB].notna().all():
        signals[LOG_PROB] = seen[LOG_PROB].to_numpy() / np.maximum(seen["tokens"].to_numpy(), 1)
    starts = np.flatnonzero(np.r_[True, prompt[1:] != prompt[:-1]])
    counts = np.diff(np.r_[starts, len(prompt)])
    sizes, place = np.repeat(counts, counts), np.arange(len(prompt)) - np.repeat(starts, counts)
    rows, total = list[dict[str, Any]](), np.zeros(len(prompt))
    for name in (*signals, RANK_SUM):
        values = signals.get(name, total)
        order = np.lexsort((values, prompt))  # stable: of equal ones the least similar first
        own = _ranked(values, prompt, order)
        total = total + own
        false = _false_negatives(good[order], place, sizes)
        rows.append({"signal": name, "auc": auc((own - 0.5) / sizes, good), "false_negatives": false})
    return rows


def auc(values: Floats, good: NDArray[np.bool_]) -> float | None:
    """Return the share of pairs of a good and a bad one in which the good one is higher; ties count one half."""
    count = int(good.sum())
    pairs = count * (len(good) - count)
    return float((ranks(values)[good].sum() - count * (count + 1) / 2) / pairs) if pairs else None


def _false_negatives(good: NDArray[np.bool_], place: Indices, sizes: Indices) -> list[float | None]:
    """Per share the good ones among those kept, in an order in which each prompt's lowest come first.

    Args:
        place: in the order of its prompt, from 0 [n].
        sizes: of its prompt [n].
    """
    found: list[float | None] = []
    for fraction in SHARES:
        kept = place < np.floor(fraction * sizes + 1e-9)
        found.append(float(good[kept].mean()) if kept.any() else None)
    return found
