"""Test the contamination check, on texts small enough to check by hand and on real prompts."""

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
class AngleEncoder:
    """An encoder of texts that are angles in degrees. It returns the unit vectors at these angles."""

    def check(self) -> None: ...

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        yield self.encode

    def encode(self, texts: Sequence[str]) -> Embeddings:
        assert len(set(texts)) == len(texts)
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


WORDS_ONLY = Contamination(ngram=3, containment=0.5, similarity=None, encoder=AngleEncoder())


# --- n-grams ---


def test_containment_equals_numbers_by_hand() -> None:
    """The 3-grams are abc, bcd and cde. The first training prompt has two of them, the second has one."""
    fractions, sources = containment(["a b c d e"], ["x a b c d y", "c d e", "a b"], 3)
    assert fractions.tolist() == [pytest.approx(2 / 3)]
    assert sources.tolist() == [0]


def test_containment_does_not_add_up_over_training_prompts() -> None:
    """Each training prompt has two of the four n-grams."""
    fractions, _ = containment(["a b c d e f"], ["a b c d", "c d e f"], 3)
    assert fractions.tolist() == [0.5]


def test_containment_counts_repeated_ngrams_once() -> None:
    fractions, _ = containment(["a a a a a b c"], ["a a a x"], 3)  # the 3-grams are aaa, aab and abc
    assert fractions.tolist() == [pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    ("prompt", "training", "expected"),
    [
        ("What's THE time,\nnow?", "what s the time now", 1),  # case, punctuation and lines are ignored
        ("ｆｕｌｌ ｗｉｄｔｈ ｌｅｔｔｅｒｓ", "full width letters", 1),  # NFKC
        ("Straße nach Süden", "STRASSE NACH SÜDEN", 1),
        ("今天天气很好", "他说今天天气不错", 0.5),  # 今天天 天天气 天气很 气很好: two of four
        ("a b", "a b", 1),  # shorter than an n-gram: all words must be equal
        ("a b", "A, b!", 1),
        ("a b", "x a b y", 0),
        ("a b", "a", 0),
        ("a b c", "a b", 0),
        ("?!", "?!", 0),  # no word
        ("", "", 0),
    ],
)
def test_containment_normalizes_text(prompt: str, training: str, expected: float) -> None:
    assert containment([prompt], [training], 3)[0].tolist() == [expected]


LETTERS = st.text("ab ", max_size=12)


@given(st.lists(LETTERS, min_size=1, max_size=6), st.lists(LETTERS, min_size=1, max_size=9), st.integers(2, 4))
def test_containment_equals_a_plain_loop(prompts: list[str], training: list[str], size: int) -> None:
    def grams(text: str) -> set[str]:
        words = text.split()
        runs = {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}
        return runs or ({"whole: " + " ".join(words)} if words else set())

    fractions, sources = containment(prompts, training, size)
    for prompt, fraction, source in zip(prompts, fractions, sources, strict=True):
        prompt_grams = grams(prompt)
        expected = [len(prompt_grams & grams(text)) / max(1, len(prompt_grams)) for text in training]
        assert fraction == pytest.approx(max(expected))
        assert expected[source] == pytest.approx(max(expected))


def test_containment_and_nearest_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcde"), 8)) for _ in range(60)]
    angles = [str(angle) for angle in rng.permutation(360)[:60]]
    in_one = containment(texts[:10], texts[10:], 3), nearest_cosine(angles[:10], angles[10:], AngleEncoder(), "cpu")
    monkeypatch.setattr(contamination, "_BLOCK", 7)
    in_blocks = containment(texts[:10], texts[10:], 3), nearest_cosine(angles[:10], angles[10:], AngleEncoder(), "cpu")
    for expected, actual in zip(in_one, in_blocks, strict=True):
        assert np.array_equal(expected[0], actual[0])
        assert np.array_equal(expected[1], actual[1])


# --- embeddings ---


def test_nearest_cosine_equals_numbers_by_hand() -> None:
    similarity, sources = nearest_cosine(["0", "90", "45"], ["60", "30", "0"], AngleEncoder(), "cpu")
    assert sources.tolist() == [2, 0, 0]  # 45 is between 60 and 30: a tie goes to the first
    assert similarity == pytest.approx(np.cos(np.radians([0, 30, 15])), abs=1e-6)


def test_find_contamination_either_rule_flags_and_names_its_match() -> None:
    rule = Contamination(ngram=2, containment=1.0, similarity=0.9, encoder=AngleEncoder())
    table = find_contamination(rule, ["10", "50", "90"], ["10", "70", "140"], "cpu")
    assert table["containment"].tolist() == [1, 0, 0]
    assert table["copied"].tolist() == ["10", "", ""]
    assert table["nearest"].tolist() == ["10", "70", "70"]
    assert table["similarity"].tolist() == pytest.approx(np.cos(np.radians([0, 20, 20])), abs=1e-6)
    assert table["flagged"].tolist() == [True, True, True]
    assert table["match"].tolist() == ["10", "70", "70"]
    strict = find_contamination(Contamination(2, 1.0, 0.95, AngleEncoder()), ["10", "50"], ["10", "70"], "cpu")
    assert strict["flagged"].tolist() == [True, False]
    assert strict["match"].tolist() == ["10", ""]


def test_find_contamination_without_similarity_embeds_nothing() -> None:
    table = find_contamination(WORDS_ONLY, ["a b c", "words of its own"], ["a b c d"], "cpu")
    assert table["similarity"].isna().all()
    assert table["flagged"].tolist() == [True, False]
    assert table["match"].tolist() == ["a b c d", ""]


def test_find_contamination_reworded_prompt_is_found_by_embedding() -> None:
    rule = Contamination(ngram=8, containment=0.8, similarity=0.8, encoder=ENCODER)
    prompts = ["How do I bake sourdough bread at home?", "Who painted the ceiling of the Sistine Chapel?"]
    training = ["What is the way to bake a sourdough bread at home?", "Write a poem about the sea."]
    table = find_contamination(rule, prompts, training, "cpu")
    assert table["containment"].tolist() == [0, 0]
    assert table["match"].tolist() == [training[0], ""]


# --- benchmarks ---


def test_check_benchmarks_writes_one_table(tmp_path: Path) -> None:
    benchmarks = {"test": {"t1": "a b c", "t2": "x y z"}, "mt_bench": {"m1": "p q r"}}
    summary = check_benchmarks(tmp_path, WORDS_ONLY, benchmarks, ["a b c", "a b c", "p q r s"], "cpu")
    assert summary == {"test/prompts": 2, "mt_bench/prompts": 1, "test/flagged": 1, "mt_bench/flagged": 1}
    table = pd.read_parquet(tmp_path / FILE)
    assert list(zip(table["benchmark"], table["id"], table["flagged"], strict=True)) == [
        ("test", "t1", True),
        ("test", "t2", False),
        ("mt_bench", "m1", True),
    ]


def test_find_contamination_without_training_prompts_is_rejected() -> None:
    with pytest.raises(ValueError, match="no training prompts"):
        find_contamination(WORDS_ONLY, ["a"], [], "cpu")


def test_user_text_holds_only_user_messages() -> None:
    dialogue = example("a", "unused", "target")
    dialogue.prompt[:] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Reply."},
        {"role": "user", "content": "Second?"},
    ]
    assert user_text(dialogue) == "First?\nSecond?"
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
def test_settings_out_of_range_are_named(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.contamination\.{key}="):
        Contamination(**{"ngram": 8, "containment": 0.8, "similarity": None, "encoder": AngleEncoder(), **wrong})


# --- real prompts ---


def prompts(*names: str) -> list[str]:
    """Read instructions with their inputs."""
    text = shared_data(*names).read_text()
    rows = json.loads(text) if names[-1].endswith(".json") else [json.loads(line) for line in text.splitlines()]
    inputs = [row["instances"][0]["input"] if "instances" in row else row.get("input", "") for row in rows]
    return [f"{row['instruction']}\n{value}".strip() for row, value in zip(rows, inputs, strict=True)]


def test_find_contamination_finds_self_instruct_tasks_in_alpaca_eval() -> None:
    """AlpacaEval contains at least 247 of the 252 tasks. Another collection shares one prompt with AlpacaEval."""
    alpaca = prompts("alpaca_eval", "instructions_baseline.jsonl")
    tasks = prompts("instruction_tuning", "self_instruct_user_oriented_252.jsonl")
    rule = Contamination(ngram=13, containment=0.8, similarity=None, encoder=AngleEncoder())
    table = find_contamination(rule, tasks, alpaca, "cpu")
    copies = {" ".join(text.split()) for text in alpaca}
    exact = np.array([" ".join(text.split()) in copies for text in tasks])
    assert table["flagged"][exact].all()
    assert table["flagged"].sum() >= max(247, exact.sum())
    other = prompts("instruction_tuning", "rasbt_instruction_1100.json")
    table = find_contamination(rule, other, alpaca, "cpu")
    assert table.loc[table["flagged"], "prompt"].tolist() == ["What is the capital of Australia?"]
