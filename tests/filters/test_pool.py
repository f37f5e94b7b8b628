"""Test which texts are in the pool of a prompt, and their consensus."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import angle, sampled_prompt

from selfcontrast.filters.pool import consensus, distinct, excluded


@given(st.lists(st.sampled_from(["", " ", "a", "a ", "b", "c", "target", " target\n"]), max_size=12))
def test_distinct_drops_empty_texts_targets_and_repetitions(texts: list[str]) -> None:
    indices = distinct("target ", texts)
    stripped = [text.strip() for text in texts]
    expected = [text for text in dict.fromkeys(stripped) if text not in ("", "target")]
    assert [stripped[i] for i in indices] == expected
    assert indices == [stripped.index(text) for text in expected]


@given(st.lists(st.sampled_from(["", " ", "a", "target", " target\n"]), max_size=8), st.sampled_from(["target ", ""]))
def test_excluded_returns_the_first_empty_text_and_the_first_target(texts: list[str], target: str) -> None:
    stripped = [text.strip() for text in texts]
    expected = {stripped.index(text) for text in ("", target.strip()) if text in stripped}
    assert set(excluded(target, texts)) == expected
    assert len(excluded(target, texts)) == len(expected)
    together = {stripped[i] for i in [*excluded(target, texts), *distinct(target, texts)]}
    assert together == set(stripped)


def test_consensus_equals_means_by_hand() -> None:
    """The responses are "a" at 0 degrees (twice), "b" at 60 degrees and a copy of the target at 90 degrees."""
    candidates = sampled_prompt(["a", "b", " a", "target"], [angle(0), angle(60), angle(0), angle(90)])
    means = consensus(candidates, np.array([0, 1]))
    assert means == pytest.approx([(1 + 0.5 + 0) / 3, (0.5 + 0.5 + np.cos(np.radians(30))) / 3], abs=1e-6)
    assert consensus(sampled_prompt(["a"], [angle(0)]), np.array([0])).tolist() == [0]


@given(
    texts=st.lists(st.sampled_from(["", "target", "a", "b", "c", "d"]), min_size=1, max_size=12), shuffle=st.randoms()
)
def test_consensus_equals_a_plain_loop_in_any_order(texts: list[str], shuffle: Any) -> None:
    angles = {"": 10, "target": 0, "a": 20, "b": 110, "c": 200, "d": 310}

    def consensus_of(ordered: list[str]) -> dict[str, float]:
        vectors = [angle(angles[text]) for text in ordered]
        first = {text: ordered.index(text) for text in ordered}
        means = consensus(sampled_prompt(ordered, vectors), np.array(list(first.values())))
        for text, value in zip(first, means, strict=True):
            others = [v for i, v in enumerate(vectors) if i != first[text]]
            plain = [float(np.dot(angle(angles[text]), other)) for other in others]
            assert value == pytest.approx(np.mean(plain) if plain else 0, abs=1e-6)
        return dict(zip(first, means.tolist(), strict=True))

    assert consensus_of(shuffle.sample(texts, len(texts))) == consensus_of(texts)
