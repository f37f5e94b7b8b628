"""The filter stage on a case small enough to do by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfcontrast.data.candidates import Candidate, read_negatives
from selfcontrast.data.example import Example
from selfcontrast.errors import UserError
from selfcontrast.filters.encode import Embedded
from selfcontrast.filters.negatives import FILE, SIMILARITIES, select_negatives
from selfcontrast.filters.select import Filter, LeastSimilar
from tiny import example

EXAMPLES = {name: example(name, "?", "target") for name in ("p", "q", "r")}
NEAR = {"target": 1.0, "good": 0.9, "fair": 0.5, "bad": 0.1, "worse": -0.2, "": 0.0}  # cosine to the target
SCORES = {"good": 1.0, "fair": 0.5, "bad": 0.0, "worse": 0.0}
SAMPLED = {
    "p": ["good", "bad", "worse", "fair", "bad"],
    "q": ["target", "", " target ", "good", "good"],  # a single distinct one
    "r": ["fair", "good", "", "worse", "bad"],
}
CANDIDATES = {
    name: [Candidate(name, i, text, [7] * (i + 1), "stop", -1.0) for i, text in enumerate(texts)]
    for name, texts in SAMPLED.items()
}


@pytest.fixture
def embedded(tmp_path: Path) -> Embedded:
    vectors = np.array([[near, np.sqrt(1 - near**2)] for near in NEAR.values()], dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 2)
    pq.write_table(pa.table({"text": list(NEAR), "embedding": column}), tmp_path / "embeddings-00000.parquet")
    return Embedded(tmp_path)


def score(one: Example, text: str) -> float:
    return SCORES[text]


def selected(folder: Path, embedded: Embedded, most: int = 2, graded: Any = score, share: float = 0.5) -> Any:
    return select_negatives(
        folder, Filter(LeastSimilar(share), most, "drop_everywhere", 0), EXAMPLES, CANDIDATES, embedded, graded
    )


def test_negatives_are_drawn_from_the_least_similar_half(tmp_path: Path, embedded: Embedded) -> None:
    selected(tmp_path, embedded)
    found = read_negatives(tmp_path / FILE)
    assert set(found) == {"p", "r"}
    for name, ranked in found.items():
        assert [n.rank for n in ranked] == [0, 1]
        assert {n.text for n in ranked} == {"bad", "worse"}
        for negative in ranked:
            assert negative.sample == SAMPLED[name].index(negative.text)
            assert negative.token_ids == [7] * (negative.sample + 1)
            assert negative.similarity == pytest.approx(NEAR[negative.text], abs=1e-6)


def test_the_summary_by_hand(tmp_path: Path, embedded: Embedded) -> None:
    """Distinct: p good bad worse fair, q good, r fair good worse bad. Drawn: bad and worse of p and r."""
    summary = selected(tmp_path, embedded)
    assert summary == {
        "prompts": 3,
        "prompts_used": 2,
        "prompts_dropped": 1,
        "candidates": 15,
        "distinct_per_prompt": 9 / 3,
        "empty_share": 2 / 15,
        "copies_of_target_share": 2 / 15,
        "similarity_candidates": pytest.approx((2 * (0.9 + 0.5 + 0.1 - 0.2) + 0.9) / 9, abs=1e-6),
        "similarity_negatives": pytest.approx((0.1 - 0.2) / 2, abs=1e-6),
        "tokens_candidates": pytest.approx((1 + 2 + 3 + 4 + 4 + 1 + 2 + 4 + 5) / 9),
        "tokens_negatives": pytest.approx((2 + 3 + 4 + 5) / 4),
        "score_candidates": pytest.approx((2 * 1.5 + 1) / 9),
        "score_negatives": 0.0,
        "false_negatives_before": pytest.approx(3 / 9),
        "false_negatives_after": 0.0,
    }
    json.dumps(summary)
    rows = pq.read_table(tmp_path / SIMILARITIES).to_pylist()
    assert [row["id"] for row in rows] == ["p"] * 4 + ["q"] + ["r"] * 4
    assert sum(row["drawn"] for row in rows) == 4


def test_without_a_verifier_nothing_is_said_of_scores(tmp_path: Path, embedded: Embedded) -> None:
    summary = selected(tmp_path, embedded, graded=None)
    scores = [name for name in summary if "score" in name or "false" in name]
    assert len(scores) == 4
    assert {summary[name] for name in scores} == {None}


def test_no_prompt_left_is_a_users_mistake(tmp_path: Path, embedded: Embedded) -> None:
    with pytest.raises(
        UserError, match=r"max_negatives=5 negatives \(2 with only 4 distinct, 1 with only 1 distinct\)"
    ):
        selected(tmp_path, embedded, most=5)
    assert not (tmp_path / FILE).exists()
