"""Compare `choose_negatives` with the filter stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import write_candidates

from selfcontrast import choose_negatives
from selfcontrast.data.candidates import read_negatives
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.filters.diverse import Clusters, LogDeterminant, MaximalMarginalRelevance
from selfcontrast.filters.embed import embed
from selfcontrast.filters.encode import LexicalEncoder
from selfcontrast.filters.filter import FILE, select_negatives
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import (
    Everything,
    LeastConsistent,
    LeastLikely,
    LeastSimilar,
    LowestRanked,
    LowestScored,
    Random,
)
from tiny import example

ENCODER = LexicalEncoder("char", 1, 3, 64)
SAMPLED = {
    "first": ["a cat", "a dog", "the cat", "", "a cat", "cats and dogs", "no", "a hat"],
    "second": ["one two", "two", "three one", "one", "four", "five six", "one two three"],
}
SELECTORS = [
    Everything(),
    LeastSimilar(0.75, "samples"),
    Random(0.75, "distinct"),
    LeastConsistent(0.75, "distinct"),
    LowestRanked(0.75, "samples", ["similarity", "consensus"]),
    MaximalMarginalRelevance(0.75, 0.5),
    LogDeterminant(0.75, 0.1),
    Clusters(0.75, 3, 4),
]
TARGETS = {"first": "the cat", "second": "one two three four"}


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda s: type(s).__name__)
def test_choose_negatives_returns_the_negatives_of_the_filter_stage(tmp_path: Path, selector: Any) -> None:
    prompts: list[tuple[str, Sequence[str]]] = [(TARGETS[name], texts) for name, texts in SAMPLED.items()]
    candidates = write_candidates(tmp_path, SAMPLED)
    embed(tmp_path, ENCODER, Local(2, 100), prompts, "cpu")
    examples = {name: example(name, "?", target) for name, target in TARGETS.items()}
    settings = Filter(selector, 2, "drop_everywhere", 7, None)
    select_negatives(tmp_path, settings, examples, candidates, tmp_path, None)
    stage = read_negatives(tmp_path / FILE)
    assert stage
    with ENCODER.open("cpu") as encode:
        for name, ranked in stage.items():
            for k in (1, 2):
                indices = choose_negatives(
                    TARGETS[name], SAMPLED[name], encoder=encode, selector=selector, k=k, seed=7, name=name
                )
                assert indices == [negative.sample for negative in ranked[:k]]


def ones(texts: Sequence[str]) -> Any:
    return np.ones((len(texts), 2))


def test_choose_negatives_from_too_few_candidates_raises() -> None:
    with pytest.raises(UserError, match=r"1 of filter\.max_negatives=2"):
        choose_negatives("a", ["b", "b", "a", ""], encoder=ones, selector=Everything(), k=2)


def test_choose_negatives_with_a_selector_of_log_probabilities_raises() -> None:
    with pytest.raises(UserError, match=r"LeastLikely .*log-probabilities"):
        choose_negatives("a", ["b"], encoder=ones, selector=LeastLikely(1.0, "distinct"), k=1)


def test_choose_negatives_with_a_selector_of_scores_raises() -> None:
    with pytest.raises(UserError, match="LowestScored needs scores"):
        choose_negatives("a", ["b"], encoder=ones, selector=LowestScored(0.5, 0.5), k=1)
