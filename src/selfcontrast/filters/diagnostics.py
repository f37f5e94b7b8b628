"""Compute diagnostics of a selection: pure functions of the prompts and candidates.

`prompts` has one row per prompt and `candidates` one per distinct candidate, as built by the filter stage.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Tokens = Sequence[int]

BINS = 100  # bins of cosine similarity, from -1 to 1
QUANTILES = (0.1, 0.5, 0.9)
ORDERS = 4  # BLEU-4: n-grams of up to 4 tokens
AUCS = {
    "auc_similarity": "similarity",
    "auc_consensus": "consensus",
    "auc_log_prob": "log-probability",
    "auc_rank_sum": "sum of ranks",
}  # keys of the summary and their labels


def describe(prompts: pd.DataFrame, candidates: pd.DataFrame) -> dict[str, Any]:
    """Return the summary: counts, fractions, and means before and after the filter; None for unknown values."""
    dropped = prompts[prompts["drawn"] == 0]
    sampled, distinct = int(prompts["sampled"].sum()), len(candidates)
    empty, copies = int(prompts["empty"].sum()), int(prompts["copies"].sum())
    negatives, others = candidates[candidates["drawn"]], candidates[~candidates["drawn"]]
    scored = bool(candidates["score"].notna().any())
    compared = with_target(candidates)
    return {
        "prompts": len(prompts),
        "prompts_used": len(prompts) - len(dropped),
        "prompts_dropped": len(dropped),
        "prompts_dropped_for_distinct": int((dropped["too_few"] == "distinct").sum()),
        "prompts_dropped_for_kept": int((dropped["too_few"] == "kept").sum()),
        "prompts_refilled": int((prompts["refilled"] > 0).sum()),
        "candidates": sampled,
        "distinct_per_prompt": distinct / len(prompts),
        "kept_per_prompt": int(prompts["kept"].sum()) / len(prompts),
        "duplicate_share": (sampled - distinct - empty - copies) / max(1, sampled),
        "empty_share": empty / max(1, sampled),
        "copies_of_target_share": copies / max(1, sampled),
        "similarity_candidates": _mean(candidates, "similarity"),
        "similarity_negatives": _mean(negatives, "similarity"),
        "tokens_candidates": _mean(candidates, "tokens"),
        "tokens_negatives": _mean(negatives, "tokens"),
        "tokens_left": _mean(others, "tokens"),
        "length_similarity_correlation": correlation_within(
            compared["prompt"], compared["tokens"], compared["similarity"]
        ),
        "characters_targets": quantiles(prompts["target_characters"].dropna()),
        "characters_candidates": quantiles(candidates["characters"]),
        "characters_negatives": quantiles(negatives["characters"]),
        "score_candidates": _mean(candidates, "score") if scored else None,
        "score_negatives": _mean(negatives, "score") if scored else None,
        "false_negatives_before": _mean(candidates, "good"),
        "false_negatives_after": _mean(negatives, "good"),
        **(_chosen(prompts) if "chosen_score" in prompts else {}),
    }


def with_target(candidates: pd.DataFrame) -> pd.DataFrame:
    """Return the candidates of prompts with a target. Those of other prompts have no similarity."""
    return candidates[candidates["similarity"].notna()]


def _chosen(prompts: pd.DataFrame) -> dict[str, Any]:
    """Summarise the chosen candidates of the used prompts: the fraction that equals the target, and the mean score."""
    used = prompts[prompts["drawn"] > 0]
    return {
        "prompts_dropped_for_chosen": int((prompts["too_few"] == "chosen").sum()),
        "chosen_is_target_share": float(used["chosen_is_target"].mean()),
        "score_chosen": float(used["chosen_score"].mean()) if used["chosen_score"].notna().any() else None,
    }


def figure_data(candidates: pd.DataFrame) -> dict[str, Any]:
    """Return the data of the similarity figure: histograms and the selector's cuts. Their size is fixed."""
    candidates = with_target(candidates)
    return {
        "edges": np.linspace(-1, 1, BINS + 1).round(6).tolist(),
        "candidates": histogram(candidates["similarity"]),
        "negatives": histogram(candidates.loc[candidates["drawn"], "similarity"]),
        # Candidates that the choice of y+ excludes are left out: they may have any similarity.
        "cuts": cuts(candidates[~candidates["taken"]]),
    }


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Describe the selection in two lines for the terminal, and in more if candidates are scored or chosen."""
    s = summary
    reasons = [
        f"{s[f'prompts_dropped_for_{reason}']:,} with too few {label}"
        for reason, label in (("distinct", "distinct candidates"), ("kept", "kept candidates"))
        if s[f"prompts_dropped_for_{reason}"]
    ]
    if s.get("prompts_dropped_for_chosen"):
        reasons.append(f"{s['prompts_dropped_for_chosen']:,} without a candidate to choose")
    used = f"{s['prompts_used']:,} of {s['prompts']:,} prompts give negatives"
    used += f" ({', '.join(reasons)})" if reasons else ""
    used += f", {s['prompts_refilled']:,} refilled" if s["prompts_refilled"] else ""
    removed = (
        ("duplicate_share", "repeated"),
        ("empty_share", "empty"),
        ("copies_of_target_share", "copies of the target"),
    )
    unusable = ", ".join(f"{s[key]:.1%} {label}" for key, label in removed)
    changes = [
        f"{label} {s[f'{key}_candidates']:.{digits}f} → {s[f'{key}_negatives']:.{digits}f}"
        for key, label, digits in (
            ("similarity", "similarity", 3),
            ("tokens", "tokens", 1),
            ("self_bleu", "self-BLEU", 3),
        )
        if s[f"{key}_candidates"] is not None and s[f"{key}_negatives"] is not None
    ]
    if s["false_negatives_before"] is not None and s["false_negatives_after"] is not None:
        changes.append(f"false negatives {s['false_negatives_before']:.1%} → {s['false_negatives_after']:.1%}")
    aucs = [f"{label} {s[key]:.3f}" for key, label in AUCS.items() if s.get(key) is not None]
    auc_line = [f"AUC for candidates as good as the target: {', '.join(aucs)}"] if aucs else []
    return [f"{used}; {unusable}", f"candidates → negatives: {', '.join(changes)}", *auc_line, *_chosen_line(s)]


def _chosen_line(s: Mapping[str, Any]) -> list[str]:
    if "chosen_is_target_share" not in s:
        return []
    score = f", mean score {s['score_chosen']:.3f}" if s["score_chosen"] is not None else ""
    return [f"chosen: candidates{score}, {s['chosen_is_target_share']:.1%} equal to the target"]


def histogram(similarity: Any) -> list[int]:
    """Return counts in `BINS` equal bins from -1 to 1."""
    counts: list[int] = np.histogram(np.asarray(similarity), bins=BINS, range=(-1, 1))[0].tolist()
    return counts


def quantiles(values: Any) -> list[float]:
    """Return `QUANTILES` of the values (linearly interpolated)."""
    return [float(q) for q in np.quantile(np.asarray(values, dtype=float), QUANTILES)] if len(values) else []


def cuts(candidates: pd.DataFrame) -> dict[str, list[float]]:
    """Return quantiles over prompts of the lowest and highest similarity that the selector keeps.

    A prompt counts for an edge only if a candidate beyond that edge was rejected. Both lists are empty if the selector
    does not cut by similarity, that is, if it rejects a candidate between two kept ones of the same prompt.
    """
    if candidates.empty:
        return {"low": [], "high": []}
    prompt, similarity, kept = (candidates[name].to_numpy() for name in ("prompt", "similarity", "kept"))
    starts = np.flatnonzero(np.r_[True, prompt[1:] != prompt[:-1]])
    lowest = np.minimum.reduceat(np.where(kept, similarity, np.inf), starts)
    highest = np.maximum.reduceat(np.where(kept, similarity, -np.inf), starts)
    sizes = np.diff(np.r_[starts, len(candidates)])
    low, high = np.repeat(lowest, sizes), np.repeat(highest, sizes)
    if (~kept & (similarity > low) & (similarity < high)).any():
        return {"low": [], "high": []}
    below = np.logical_or.reduceat(~kept & (similarity < low), starts) & np.isfinite(lowest)
    above = np.logical_or.reduceat(~kept & (similarity > high), starts) & np.isfinite(highest)
    return {"low": quantiles(lowest[below]), "high": quantiles(highest[above])}


def correlation_within(groups: Any, x: Any, y: Any) -> float | None:
    """Return the pooled Pearson correlation of x and y about their group means; None if one does not vary."""
    frame = pd.DataFrame({"group": np.asarray(groups), "x": np.asarray(x, float), "y": np.asarray(y, float)})
    centred = frame[["x", "y"]] - frame.groupby("group")[["x", "y"]].transform("mean")
    scale = float(np.sqrt((centred["x"] ** 2).sum() * (centred["y"] ** 2).sum()))
    return float((centred["x"] * centred["y"]).sum()) / scale if scale > 1e-12 else None


def diversity(prompts: Sequence[tuple[Sequence[Tokens], Sequence[Tokens]]]) -> dict[str, float | None]:
    """Return distinct-1, distinct-2 and self-BLEU of candidates and of negatives, averaged over prompts.

    Args:
        prompts: (candidates, negatives) per prompt, in the policy's tokens; sets of fewer than two are ignored.
    """
    means: dict[str, float | None] = {}
    for name, texts in (("candidates", [p[0] for p in prompts]), ("negatives", [p[1] for p in prompts])):
        groups = [group for group in texts if len(group) > 1]
        means[f"distinct_1_{name}"] = _average([distinct_n(group, 1) for group in groups])
        means[f"distinct_2_{name}"] = _average([distinct_n(group, 2) for group in groups])
        means[f"self_bleu_{name}"] = _average([self_bleu(group) for group in groups])
    return means


def distinct_n(texts: Sequence[Tokens], n: int) -> float:
    """Return unique n-grams / all n-grams of the texts together (Li et al., 2016), in [0, 1]; 0 without n-grams."""
    counts: Counter[tuple[int, ...]] = Counter()
    for text in texts:
        counts.update(_ngrams(text, n))
    return len(counts) / max(1, counts.total())


def self_bleu(texts: Sequence[Tokens]) -> float:
    """Return the mean BLEU-4 of each text against all others (Zhu et al., 2018), in [0, 1]; 1: all texts are equal.

    Counts above unigrams are smoothed by adding one (Lin and Och, 2004), as in sacrebleu with
    `smooth_method="add-k"` and `smooth_value=1`.
    """
    grams = [[_ngrams(text, n) for n in range(1, ORDERS + 1)] for text in texts]
    best = [_two_highest([counts[order] for counts in grams]) for order in range(ORDERS)]
    lengths = np.array([len(text) for text in texts])
    total = 0.0
    for i, counts in enumerate(grams):
        matches = [sum(min(n, _highest_in_others(best[k][g], n)) for g, n in counts[k].items()) for k in range(ORDERS)]
        if matches[0]:
            logs = [math.log((matches[k] + (k > 0)) / (counts[k].total() + (k > 0))) for k in range(ORDERS)]
            total += math.exp(sum(logs) / ORDERS + _brevity(int(lengths[i]), np.delete(lengths, i)))
    return total / len(texts)


def _ngrams(text: Tokens, n: int) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


def _two_highest(texts: Sequence[Counter[tuple[int, ...]]]) -> dict[tuple[int, ...], tuple[int, int]]:
    """Return the highest and second highest count in a text, per n-gram."""
    best: dict[tuple[int, ...], tuple[int, int]] = {}
    for counts in texts:
        for gram, n in counts.items():
            first, second = best.get(gram, (0, 0))
            best[gram] = (n, first) if n > first else (first, max(second, n))
    return best


def _highest_in_others(best: tuple[int, int], count: int) -> int:
    """Return an n-gram's highest count in the other texts, for a text that has it `count` times."""
    return best[1] if count == best[0] else best[0]


def _brevity(length: int, others: NDArray[np.int_]) -> float:
    """Return the log of BLEU's brevity penalty. The reference is the text nearest in length; ties: the shorter one."""
    nearest: int = min(others.tolist(), key=lambda other: (abs(other - length), other))
    return min(0.0, 1 - nearest / length)


def _average(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _mean(frame: pd.DataFrame, column: str) -> float | None:
    return float(frame[column].mean()) if frame[column].notna().any() else None
