"""Some prompts' candidates beside their targets, as a table for a reader: which were drawn, and how near they are."""

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


def shown_candidates(
    candidates: Path, embeddings: Path, selected: Path, examples: Mapping[str, Example], prompts: int
) -> pd.DataFrame:
    """A row per candidate of `prompts` prompts, evenly spread: its cosine to the target, and its rank in the pool.

    Args:
        candidates: the file of the stage generate.
        embeddings: the folder of the stage embed.
        selected: the folder of the stage filter.
    """
    places = list(spans(pq.read_table(candidates, columns=["id"])))
    chosen = list(range(0, len(places), max(1, len(places) // prompts)))[:prompts]
    names = [places[at][0] for at in chosen]
    drawn = read_negatives(selected / filter_stage.FILE, names)
    rows = pq.read_table(candidates, columns=COLUMNS, filters=[("id", "in", names)]).to_pandas()
    near, towards = Vectors(embeddings / CANDIDATES), Vectors(embeddings / TARGETS)
    parts = []
    for at, name in zip(chosen, names, strict=True):
        own = rows[rows["id"] == name]
        cosines = near.of(places[at][1].start, own["text"].to_list()) @ towards[at : at + 1][0]
        if not examples[name].has_target:
            cosines = np.full(len(own), np.nan, dtype=np.float32)
        parts.append(_prompt(own, cosines, drawn.get(name, []), examples[name]))
    return pd.concat(parts, ignore_index=True)


def _prompt(own: pd.DataFrame, cosines: np.ndarray, drawn: list[Negative], example: Example) -> pd.DataFrame:
    ranks = {negative.sample: negative.rank for negative in drawn}
    return pd.DataFrame(
        {
            "prompt": example.prompt[-1]["content"],
            "target": example.target,
            "candidate": own["text"].to_numpy(),
            "similarity": cosines,
            "rank": pd.array([ranks.get(sample) for sample in own["sample"]], dtype="Int64"),  # none: not drawn
            "tokens": own["token_ids"].map(len).to_numpy(),
            "finish_reason": own["finish_reason"].to_numpy(),
            "log_prob": own["log_prob"].to_numpy(),
        }
    )
