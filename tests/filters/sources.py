"""Write the artifacts that the filter stage reads: candidates, and vectors with chosen cosines to the target."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from selfcontrast.data.candidates import Candidate, candidates_table
from selfcontrast.filters.embed import CANDIDATES, TARGETS, _write, hashes_of


def log_prob_per_token(text: str) -> float:
    return -(sum(map(ord, text.strip())) % 64) / 8


def write_candidates(
    folder: Path, sampled: Mapping[str, Sequence[str]], truncated: Collection[tuple[str, int]] = ()
) -> Path:
    """Write the candidates of each prompt. Candidate i has i + 1 tokens; `truncated` has (id, i) of truncated ones."""
    folder.mkdir(exist_ok=True)
    rows = [
        Candidate(name, i, text, [7] * (i + 1), reason, log_prob_per_token(text) * (i + 1))
        for name, texts in sampled.items()
        for i, text in enumerate(texts)
        for reason in ["length" if (name, i) in truncated else "stop"]
    ]
    pq.write_table(candidates_table(rows), folder / "candidates.parquet")
    return folder / "candidates.parquet"


def write_vectors(
    folder: Path, sampled: Mapping[str, Sequence[str]], vector: Callable[[str], Any], target_vector: Any
) -> None:
    """Write `vector(text)` for every candidate, and `target_vector` for the target of every prompt."""
    texts = [text for texts in sampled.values() for text in texts]
    targets = ["target"] * len(sampled)
    for file, column, vectors in (
        (CANDIDATES, texts, [vector(text) for text in texts]),
        (TARGETS, targets, [target_vector] * len(sampled)),
    ):
        _write(folder / file, np.array(vectors, dtype=np.float16), hashes_of(column), np.arange(len(column)))


def write_sources(
    folder: Path, sampled: Mapping[str, Sequence[str]], cosine: Callable[[str], float]
) -> tuple[Path, Path]:
    """Write candidates, and vectors with `cosine(text)` to the target (1, 0). Return the paths of both."""
    file = write_candidates(folder, sampled)
    write_vectors(folder, sampled, lambda text: [cosine(text), np.sqrt(1 - cosine(text) ** 2)], [1, 0])
    return file, folder
