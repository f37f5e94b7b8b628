from pathlib import Path

import pandas as pd
import pytest
from test_filter import COSINES, EXAMPLES, SAMPLED, select

from selfcontrast.data.candidates import read_negatives
from selfcontrast.filters.candidate_table import candidate_table
from selfcontrast.filters.filter import FILE
from selfcontrast.filters.selectors import LeastSimilar


def table_of(folder: Path, prompts: int) -> pd.DataFrame:
    return candidate_table(folder / "in" / "candidates.parquet", folder / "in", folder, EXAMPLES, prompts)


def test_candidate_table_has_every_candidate_with_similarity_and_rank(tmp_path: Path) -> None:
    # The filter draws "bad" and "worse" for p and r, and nothing for q, which has one distinct candidate.
    select(tmp_path, LeastSimilar(0.5, "distinct"))
    table = table_of(tmp_path, 3)
    assert table["candidate"].tolist() == [text for texts in SAMPLED.values() for text in texts]
    assert set(table["prompt"]) == {"?"}
    assert set(table["target"]) == {"target"}
    assert table["similarity"].tolist() == pytest.approx(
        [COSINES.get(text.strip(), 0.0) for texts in SAMPLED.values() for text in texts], abs=1e-3
    )
    drawn = read_negatives(tmp_path / FILE)
    sampled = [(name, sample) for name, texts in SAMPLED.items() for sample in range(len(texts))]
    ranks = {(name, negative.sample): negative.rank for name, ranked in drawn.items() for negative in ranked}
    assert len(ranks) == 4
    assert [None if pd.isna(rank) else rank for rank in table["rank"]] == [ranks.get(key) for key in sampled]
    assert table["tokens"].tolist() == [sample + 1 for _, sample in sampled]


def test_candidate_table_is_limited_to_the_number_of_prompts(tmp_path: Path) -> None:
    select(tmp_path, LeastSimilar(0.5, "distinct"))
    assert len(table_of(tmp_path, 1)) == len(SAMPLED["p"])
    assert len(table_of(tmp_path, 2)) == len(SAMPLED["p"]) + len(SAMPLED["q"])
