"""Stage filter: from candidates and embeddings to negatives, with what a reader must know of the choice."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfcontrast.data.candidates import Candidate, Negative
from selfcontrast.data.example import Example
from selfcontrast.errors import UserError
from selfcontrast.filters.encode import Embedded, similarity
from selfcontrast.filters.select import Filter, distinct, draw

VERSION = 1
FILE, SIMILARITIES = "negatives.parquet", "similarities.parquet"

Score = Callable[[Example, str], float]


def select_negatives(
    folder: Path,
    settings: Filter,
    examples: Mapping[str, Example],
    candidates: Mapping[str, Sequence[Candidate]],
    embedded: Embedded,
    score: Score | None,
) -> dict[str, Any]:
    """Writes the negatives of every prompt that can give `max_negatives`, and all similarities; returns the counts.

    Args:
        score: a verifier's, where the data has one: how good the candidates are is then a fact, not a guess.

    Raises:
        UserError: when no prompt is left.
    """
    rows: list[Negative] = []
    seen: list[dict[str, Any]] = []
    shortage: Counter[str] = Counter()
    for name, sampled in candidates.items():
        target = examples[name].target
        different = distinct(target, sampled)
        near = similarity(embedded, target, [c.text for c in different]) if different else np.empty(0, np.float32)
        drawn = draw(settings, name, near)
        chosen = {int(i) for i in drawn}
        if not chosen:
            shortage[f"only {len(different)} distinct"] += 1
        rows += [_negative(different[int(i)], rank, float(near[i])) for rank, i in enumerate(drawn)]
        for i, candidate in enumerate(different):
            seen.append(
                {
                    "id": name,
                    "similarity": float(near[i]),
                    "drawn": i in chosen,
                    "tokens": len(candidate.token_ids),
                    "score": score(examples[name], candidate.text) if score else None,
                }
            )
    if not rows:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in shortage.most_common(3))
        raise UserError(
            f"no prompt gives filter.max_negatives={settings.max_negatives} negatives ({reasons}): "
            "lower it, sample more (generator.samples), or choose filter.on_shortage=refill"
        )
    pq.write_table(pa.Table.from_pylist([vars(row) for row in rows]), folder / FILE)
    pq.write_table(pa.Table.from_pylist(seen), folder / SIMILARITIES)
    return _summary(candidates, examples, seen, shortage)


def _negative(candidate: Candidate, rank: int, near: float) -> Negative:
    return Negative(candidate.id, rank, candidate.sample, candidate.text, candidate.token_ids, near)


def _summary(
    candidates: Mapping[str, Sequence[Candidate]],
    examples: Mapping[str, Example],
    seen: Sequence[Mapping[str, Any]],
    shortage: Counter[str],
) -> dict[str, Any]:
    drawn = [row for row in seen if row["drawn"]]
    texts = [(name, c.text.strip()) for name, sampled in candidates.items() for c in sampled]
    copies = sum(text == examples[name].target.strip() for name, text in texts)

    def mean(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
        return float(np.mean([row[column] for row in rows])) if rows and rows[0][column] is not None else None

    def perfect(rows: Sequence[Mapping[str, Any]]) -> float | None:
        return float(np.mean([row["score"] == 1 for row in rows])) if rows and rows[0]["score"] is not None else None

    return {
        "prompts": len(candidates),
        "prompts_used": len(candidates) - sum(shortage.values()),
        "prompts_dropped": sum(shortage.values()),
        "candidates": len(texts),
        "distinct_per_prompt": len(seen) / max(1, len(candidates)),
        "empty_share": sum(not text for _, text in texts) / max(1, len(texts)),
        "copies_of_target_share": copies / max(1, len(texts)),
        "similarity_candidates": mean(seen, "similarity"),
        "similarity_negatives": mean(drawn, "similarity"),
        "tokens_candidates": mean(seen, "tokens"),
        "tokens_negatives": mean(drawn, "tokens"),
        "score_candidates": mean(seen, "score"),
        "score_negatives": mean(drawn, "score"),
        "false_negatives_before": perfect(seen),
        "false_negatives_after": perfect(drawn),
    }
