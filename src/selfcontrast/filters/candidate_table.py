"""Build a readable table of candidates beside their targets, with similarity and rank."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from selfcontrast.data.candidates import Negative, read_negatives, spans
from selfcontrast.data.example import Example
from selfcontrast.filters import filter as filter_stage
from selfcontrast.filters.embed import CANDIDATES, TARGETS, Vectors

COLUMNS = ["id", "sample", "text", "token_ids", "finish_reason", "log_prob"]


def candidate_table(
    candidates: Path, embeddings: Path, selected: Path, examples: Mapping[str, Example], prompts: int
) -> pd.DataFrame:
    """Return a row per candidate of `prompts` evenly spaced prompts, with its cosine to the target and its rank.

    Args:
        candidates: file of the generate stage.
        embeddings: folder of the embed stage.
        selected: folder of the filter stage.
    """
    prompt_spans = list(spans(pq.read_table(candidates, columns=["id"])))
    indices = list(range(0, len(prompt_spans), max(1, len(prompt_spans) // prompts)))[:prompts]
    names = [prompt_spans[i][0] for i in indices]
    drawn = read_negatives(selected / filter_stage.FILE, names)
    rows = pq.read_table(candidates, columns=COLUMNS, filters=[("id", "in", names)]).to_pandas()
    vectors, targets = Vectors(embeddings / CANDIDATES), Vectors(embeddings / TARGETS)
    parts = []
    for i, name in zip(indices, names, strict=True):
        sampled = rows[rows["id"] == name]
        cosines = vectors.of(prompt_spans[i][1].start, sampled["text"].to_list()) @ targets[i : i + 1][0]
        if not examples[name].has_target:
            cosines = np.full(len(sampled), np.nan, dtype=np.float32)
        parts.append(_prompt_rows(sampled, cosines, drawn.get(name, []), examples[name]))
    return pd.concat(parts, ignore_index=True)


def _prompt_rows(sampled: pd.DataFrame, cosines: np.ndarray, drawn: list[Negative], example: Example) -> pd.DataFrame:
    ranks = {negative.sample: negative.rank for negative in drawn}
    return pd.DataFrame(
        {
            "prompt": example.prompt[-1]["content"],
            "target": example.target,
            "candidate": sampled["text"].to_numpy(),
            "similarity": cosines,
            "rank": pd.array([ranks.get(sample) for sample in sampled["sample"]], dtype="Int64"),  # NA: not drawn
            "tokens": sampled["token_ids"].map(len).to_numpy(),
            "finish_reason": sampled["finish_reason"].to_numpy(),
            "log_prob": sampled["log_prob"].to_numpy(),
        }
    )
