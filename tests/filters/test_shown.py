from pathlib import Path

import pandas as pd
import pytest
from test_filter import EXAMPLES, NEAR, SAMPLED, select

from selfcontrast.data.candidates import read_negatives
from selfcontrast.filters.filter import FILE
from selfcontrast.filters.selectors import LeastSimilar
from selfcontrast.filters.shown import shown_candidates


def shown(folder: Path, prompts: int) -> pd.DataFrame:
    return shown_candidates(folder / "in" / "candidates.parquet", folder / "in", folder, EXAMPLES, prompts)


def test_every_candidate_with_its_similarity_and_its_rank_in_the_pool(tmp_path: Path) -> None:
    select(
        tmp_path, LeastSimilar(0.5, "distinct")
    )  # of p and r bad and worse; of q, which has one distinct candidate, none
    found = shown(tmp_path, 3)
    assert found["candidate"].tolist() == [text for texts in SAMPLED.values() for text in texts]
    assert set(found["prompt"]) == {"?"}
    assert set(found["target"]) == {"target"}
    assert found["similarity"].tolist() == pytest.approx(
        [NEAR.get(text.strip(), 0.0) for texts in SAMPLED.values() for text in texts], abs=1e-3
    )
    drawn = read_negatives(tmp_path / FILE)
    sampled = [(name, sample) for name, texts in SAMPLED.items() for sample in range(len(texts))]
    ranks = {(name, negative.sample): negative.rank for name, ranked in drawn.items() for negative in ranked}
    assert len(ranks) == 4
    assert [None if pd.isna(rank) else rank for rank in found["rank"]] == [ranks.get(own) for own in sampled]
    assert found["tokens"].tolist() == [sample + 1 for _, sample in sampled]


def test_no_more_prompts_than_asked_for(tmp_path: Path) -> None:
    select(tmp_path, LeastSimilar(0.5, "distinct"))
    assert len(shown(tmp_path, 1)) == len(SAMPLED["p"])
    assert len(shown(tmp_path, 2)) == len(SAMPLED["p"]) + len(SAMPLED["q"])
