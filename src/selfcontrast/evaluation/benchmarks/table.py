"""All judgments of a benchmark as one table, to be looked through."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS

NAMES = {"outcome": "verdict", "rating": "verdict", "reply": "reason", "question": "prompt"}
FIRST = ["system", "category", "prompt", "answer", "other", "verdict", "reason", "status"]


def judgments_table(folders: Mapping[str, Path], most: int | None) -> pd.DataFrame:
    """A row per judgment of each system: prompt, answer, the other answer where there is one, verdict, and reason.

    The verdict is the grade, or the outcome for the system's own answer in either order. Of more than `most` rows as
    many are taken, evenly spread. Empty where the benchmark has no judgments.
    """
    frames = []
    for system, folder in folders.items():
        if (folder / JUDGMENTS).exists():
            frame = pd.read_parquet(folder / JUDGMENTS).rename(columns=NAMES)
            frame.insert(0, "system", system)
            frames.append(frame)
    if not frames:
        return pd.DataFrame()
    table = pd.concat(frames, ignore_index=True)
    table = table[sorted(table, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))]
    if most is None or len(table) <= most:
        return table
    return table.iloc[np.linspace(0, len(table) - 1, most).round().astype(int)].reset_index(drop=True)
