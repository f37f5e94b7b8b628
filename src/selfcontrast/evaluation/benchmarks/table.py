"""Put all judgments of a benchmark into one table to browse."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS

NAMES = {"outcome": "verdict", "rating": "verdict", "reply": "reason", "question": "prompt"}
FIRST = ["system", "category", "prompt", "answer", "other", "verdict", "reason", "status"]


def judgments_table(folders: Mapping[str, Path], max_rows: int | None) -> pd.DataFrame:
    """Return one row per judgment: system, prompt, answer, the other answer of a comparison, verdict, and reason.

    The verdict is the grade, or the outcome for the system's answer, whether it was shown first or second. If there are
    more than `max_rows` rows, evenly spaced ones are returned. Without judgments, the table is empty.
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
    if max_rows is None or len(table) <= max_rows:
        return table
    return table.iloc[np.linspace(0, len(table) - 1, max_rows).round().astype(int)].reset_index(drop=True)
