"""Which prompts stand in the training data, on texts small enough to count by hand, and on real ones."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.errors import UserError
from selfcontrast.evaluation import contamination
from selfcontrast.evaluation.contamination import (
    FILE,
    Contamination,
    check_benchmarks,
    containment,
    find_contamination,
    nearest_cosine,
    user_text,
)
from selfcontrast.filters.encode import BUILTIN, Embeddings, Encode, SentenceEncoder
from shared import shared_data
from tiny import example

ENCODER = SentenceEncoder(BUILTIN, None, "", None, "float32", 256, "cut", False, 64, [])


@dataclass(frozen=True)
class Angles:
    """Texts that are numbers, as directions of so many degrees."""

    def check(self) -> None: ...

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        yield self.encode

    def encode(self, texts: Sequence[str]) -> Embeddings:
        assert len(set(texts)) == len(texts)
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


WORDS_ALONE = Contamination(ngram=3, containment=0.5, similarity=None, encoder=Angles())


# --- n-grams ---


def test_containment_by_hand() -> None:
    """Of "a b c d e" the 3-grams are abc, bcd, cde: the first training prompt has two of them, the second one."""
    share, whose = containment(["a b c d e"], ["x a b c d y", "c d e", "a b"], 3)
    assert share.tolist() == [pytest.approx(2 / 3)]
    assert whose.tolist() == [0]


def test_one_training_prompt_must_hold_the_share() -> None:
    share, _ = containment(["a b c d e f"], ["a b c d", "c d e f"], 3)  # together all of four, each alone two
    assert share.tolist() == [0.5]


def test_repeated_ngrams_count_once() -> None:
    share, _ = containment(["a a a a a b c"], ["a a a x"], 3)  # aaa, aab, abc
    assert share.tolist() == [pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    ("prompt", "training", "share"),
    [
        ("What's THE time,\nnow?", "what s the time now", 1),  # small letters, no punctuation, no lines
        ("ｆｕｌｌ ｗｉｄｔｈ ｌｅｔｔｅｒｓ", "full width letters", 1),  # NFKC
        ("Straße nach Süden", "STRASSE NACH SÜDEN", 1),
        ("今天天气很好", "他说今天天气不错", 0.5),  # 今天天 天天气 天气很 气很好: two of four
        ("a b", "a b", 1),  # shorter than the n-gram: equal or nothing
        ("a b", "A, b!", 1),
        ("a b", "x a b y", 0),
        ("a b", "a", 0),
        ("a b c", "a b", 0),
        ("?!", "?!", 0),  # no word
        ("", "", 0),
    ],
)
def test_what_counts_as_equal(prompt: str, training: str, share: float) -> None:
    assert containment([prompt], [training], 3)[0].tolist() == [share]


LETTERS = st.text("ab ", max_size=12)


@given(st.lists(LETTERS, min_size=1, max_size=6), st.lists(LETTERS, min_size=1, max_size=9), st.integers(2, 4))
def test_containment_is_the_plain_loops(prompts: list[str], training: list[str], size: int) -> None:
    def grams(text: str) -> set[str]:
        words = text.split()
        runs = {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}
        return runs or ({"whole: " + " ".join(words)} if words else set())

    share, whose = containment(prompts, training, size)
    for prompt, found, at in zip(prompts, share, whose, strict=True):
        own = grams(prompt)
        expected = [len(own & grams(text)) / max(1, len(own)) for text in training]
        assert found == pytest.approx(max(expected))
        assert expected[at] == pytest.approx(max(expected))


def test_blocks_of_training_prompts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcde"), 8)) for _ in range(60)]
    angles = [str(angle) for angle in rng.permutation(360)[:60]]
    whole = containment(texts[:10], texts[10:], 3), nearest_cosine(angles[:10], angles[10:], Angles(), "cpu")
    monkeypatch.setattr(contamination, "_BLOCK", 7)
    parts = containment(texts[:10], texts[10:], 3), nearest_cosine(angles[:10], angles[10:], Angles(), "cpu")
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])


# --- embeddings ---


def test_nearest_by_hand() -> None:
    similarity, whose = nearest_cosine(["0", "90", "45"], ["60", "30", "0"], Angles(), "cpu")
    assert whose.tolist() == [2, 0, 0]  # 45 lies between 60 and 30: the first of them
    assert similarity == pytest.approx(np.cos(np.radians([0, 30, 15])), abs=1e-6)


def test_either_rule_flags_and_names_its_match() -> None:
    rule = Contamination(ngram=2, containment=1.0, similarity=0.9, encoder=Angles())
    found = find_contamination(rule, ["10", "50", "90"], ["10", "70", "140"], "cpu")
    assert found["containment"].tolist() == [1, 0, 0]
    assert found["copied"].tolist() == ["10", "", ""]
    assert found["nearest"].tolist() == ["10", "70", "70"]
    assert found["similarity"].tolist() == pytest.approx(np.cos(np.radians([0, 20, 20])), abs=1e-6)
    assert found["flagged"].tolist() == [True, True, True]
    assert found["match"].tolist() == ["10", "70", "70"]
    strict = find_contamination(Contamination(2, 1.0, 0.95, Angles()), ["10", "50"], ["10", "70"], "cpu")
    assert strict["flagged"].tolist() == [True, False]
    assert strict["match"].tolist() == ["10", ""]


def test_without_a_similarity_nothing_is_embedded() -> None:
    found = find_contamination(WORDS_ALONE, ["a b c", "words of its own"], ["a b c d"], "cpu")
    assert found["similarity"].isna().all()
    assert found["flagged"].tolist() == [True, False]
    assert found["match"].tolist() == ["a b c d", ""]


def test_a_reworded_prompt_is_found_by_meaning_alone() -> None:
    rule = Contamination(ngram=8, containment=0.8, similarity=0.8, encoder=ENCODER)
    prompts = ["How do I bake sourdough bread at home?", "Who painted the ceiling of the Sistine Chapel?"]
    training = ["What is the way to bake a sourdough bread at home?", "Write a poem about the sea."]
    found = find_contamination(rule, prompts, training, "cpu")
    assert found["containment"].tolist() == [0, 0]
    assert found["match"].tolist() == [training[0], ""]


# --- benchmarks ---


def test_benchmarks_are_written_one_below_the_other(tmp_path: Path) -> None:
    benchmarks = {"test": {"t1": "a b c", "t2": "x y z"}, "mt_bench": {"m1": "p q r"}}
    summary = check_benchmarks(tmp_path, WORDS_ALONE, benchmarks, ["a b c", "a b c", "p q r s"], "cpu")
    assert summary == {"test/prompts": 2, "mt_bench/prompts": 1, "test/flagged": 1, "mt_bench/flagged": 1}
    found = pd.read_parquet(tmp_path / FILE)
    assert list(zip(found["benchmark"], found["id"], found["flagged"], strict=True)) == [
        ("test", "t1", True),
        ("test", "t2", False),
        ("mt_bench", "m1", True),
    ]


def test_no_training_prompts() -> None:
    with pytest.raises(ValueError, match="no training prompts"):
        find_contamination(WORDS_ALONE, ["a"], [], "cpu")


def test_only_what_the_user_says_is_compared() -> None:
    one = example("a", "unused", "target")
    one.prompt[:] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Reply."},
        {"role": "user", "content": "Second?"},
    ]
    assert user_text(one) == "First?\nSecond?"
    assert user_text(example("b", "unused", "target", turns=["One?", "Two?"])) == "One?\nTwo?"


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"ngram": 1}, "ngram"),
        ({"containment": 0.0}, "containment"),
        ({"containment": 1.5}, "containment"),
        ({"similarity": 0.0}, "similarity"),
        ({"similarity": 1.1}, "similarity"),
    ],
)
def test_a_rule_that_cannot_be(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.contamination\.{key}="):
        Contamination(**{"ngram": 8, "containment": 0.8, "similarity": None, "encoder": Angles(), **wrong})


# --- real prompts ---


def prompts(*names: str) -> list[str]:
    """Instructions with their inputs."""
    text = shared_data(*names).read_text()
    rows = json.loads(text) if names[-1].endswith(".json") else [json.loads(line) for line in text.splitlines()]
    inputs = [row["instances"][0]["input"] if "instances" in row else row.get("input", "") for row in rows]
    return [f"{row['instruction']}\n{given}".strip() for row, given in zip(rows, inputs, strict=True)]


def test_self_instructs_user_oriented_tasks_are_found_in_alpaca_eval() -> None:
    """AlpacaEval took them over. Of another collection one prompt stands in both."""
    alpaca = prompts("alpaca_eval", "instructions_baseline.jsonl")
    own = prompts("instruction_tuning", "self_instruct_user_oriented_252.jsonl")
    rule = Contamination(ngram=13, containment=0.8, similarity=None, encoder=Angles())
    found = find_contamination(rule, own, alpaca, "cpu")
    copies = {" ".join(text.split()) for text in alpaca}
    exact = np.array([" ".join(text.split()) in copies for text in own])
    assert found["flagged"][exact].all()
    assert found["flagged"].sum() >= max(247, exact.sum())
    other = prompts("instruction_tuning", "rasbt_instruction_1100.json")
    found = find_contamination(rule, other, alpaca, "cpu")
    assert found.loc[found["flagged"], "prompt"].tolist() == ["What is the capital of Australia?"]
