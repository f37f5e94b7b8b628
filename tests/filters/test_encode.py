"""Test the built-in encoder with its real weights, and compare the lexical encoder with counted n-grams."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.filters.embed import CANDIDATES, TARGETS, Vectors, embed
from selfcontrast.filters.encode import (
    BUILTIN,
    Embeddings,
    Encoder,
    LexicalEncoder,
    SentenceEncoder,
    builtin_folder,
    unit,
)
from selfcontrast.models.truncation import unread
from selfcontrast.store import settings_of
from shared import shared_data

TEXTS = ["a cat sits", "a cat is sitting", "stock prices fell", "", "你好 🙂", "word " * 600]
MINILM = SentenceEncoder(
    BUILTIN, None, "", None, "float32", 64, "cut", trust_remote_code=False, batch_size=4, devices=[]
)
LEXICAL = LexicalEncoder("word", 1, 2, 2**14)


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Embeddings:
    with encoder.open("cpu") as encode:
        return encode(texts)


@pytest.fixture(scope="module")
def vectors() -> Embeddings:
    return encode_texts(MINILM, TEXTS)


def test_vectors_have_length_one(vectors: Embeddings) -> None:
    assert vectors.shape == (6, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_similar_meaning_has_a_high_cosine(vectors: Embeddings) -> None:
    sits, sitting, stocks = vectors[:3]
    assert sits @ sitting > 0.8
    assert sits @ stocks < 0.3


def test_vectors_do_not_depend_on_order_or_batch(vectors: Embeddings) -> None:
    order = [3, 5, 0, 4, 2, 1]
    shuffled = encode_texts(MINILM, [TEXTS[i] for i in order])
    np.testing.assert_allclose(shuffled, vectors[order], atol=1e-5)
    np.testing.assert_allclose(encode_texts(replace(MINILM, batch_size=1), TEXTS), vectors, atol=1e-5)


def test_prefix_and_max_tokens_change_the_text_that_is_read() -> None:
    def first(prefix: str, max_tokens: int, text: str) -> Any:
        return encode_texts(replace(MINILM, prefix=prefix, max_tokens=max_tokens), [text])[0]

    np.testing.assert_allclose(first("query: ", 64, "a cat"), first("", 64, "query: a cat"), atol=1e-5)
    cut = first("", 5, "a cat sits on the stock market")
    np.testing.assert_allclose(
        cut, first("", 64, "a cat sits"), atol=1e-5
    )  # "a cat sits" has five tokens with [CLS] and [SEP]


def test_pooling_defaults_to_the_pooling_of_the_model(vectors: Embeddings) -> None:
    """Compare with the bare model's token vectors: the first, or their mean (MiniLM's own pooling)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (kind.from_pretrained(str(builtin_folder())) for kind in (AutoTokenizer, AutoModel))
    with torch.inference_mode():
        states = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    for pooling, state in (("cls", states[0]), ("mean", states.mean(0)), (None, states.mean(0))):
        expected = (state / state.norm()).numpy()
        np.testing.assert_allclose(encode_texts(replace(MINILM, pooling=pooling), TEXTS[:1])[0], expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_returns_close_float32_vectors(vectors: Embeddings, dtype: str, bits: int) -> None:
    halved = encode_texts(replace(MINILM, dtype=dtype), TEXTS)
    assert halved.dtype == np.float32
    assert not np.array_equal(halved, vectors)
    assert ((halved * vectors).sum(1) > 1 - 4 * 2.0**-bits).all()


@pytest.mark.slow
def test_several_devices_return_the_same_vectors(vectors: Embeddings) -> None:
    np.testing.assert_allclose(encode_texts(replace(MINILM, devices=["cpu", "cpu"]), TEXTS), vectors, atol=1e-5)


def test_pooling_of_a_model_without_pooling_raises(tmp_path: Path) -> None:
    shutil.copytree(builtin_folder(), tmp_path / "model")
    modules = tmp_path / "model" / "modules.json"
    others = [module for module in json.loads(modules.read_text()) if "Pooling" not in module["type"]]
    modules.write_text(json.dumps(others))
    with pytest.raises(UserError, match=r"encoder\.pooling=cls.*null"):
        encode_texts(replace(MINILM, path=str(tmp_path / "model"), pooling="cls"), ["a"])


def test_check_missing_folder_raises() -> None:
    MINILM.check()
    with pytest.raises(UserError, match=r"encoder\.path=\./nowhere"):
        replace(MINILM, path="./nowhere").check()


def test_settings_of_a_folder_hash_its_nested_content(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    config = tmp_path / "1_Pooling" / "config.json"
    config.write_text("{}")
    encoder = replace(MINILM, path=str(tmp_path))
    before = settings_of(encoder)
    assert settings_of(replace(encoder, batch_size=9, devices=["cpu"])) == before
    assert settings_of(replace(encoder, pooling="cls")) != before
    config.write_text("[]")
    assert settings_of(encoder) != before
    assert settings_of(MINILM)["path"] == BUILTIN
    assert settings_of(LEXICAL) != settings_of(replace(LEXICAL, dimensions=7))


@pytest.mark.parametrize(
    ("encoder", "changes", "line"),
    [
        (MINILM, {"pooling": "max"}, r"encoder\.pooling=max.* cls, mean"),
        (MINILM, {"long_texts": "mean"}, r"encoder\.long_texts=mean.* cut or windows"),
        (MINILM, {"dtype": "int8"}, r"encoder\.dtype=int8.* float32, float16, bfloat16"),
        (LEXICAL, {"analyzer": "line"}, r"encoder\.analyzer=line.* word, char, char_wb"),
        (LEXICAL, {"shortest": 3}, r"encoder\.shortest=3 .*encoder\.longest=2"),
        (LEXICAL, {"shortest": 0}, r"encoder\.shortest=0"),
        (LEXICAL, {"dimensions": 1}, r"encoder\.dimensions=1: "),
    ],
)
def test_encoder_invalid_settings_raise(encoder: Any, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        replace(encoder, **changes)


# --- lexical


def cosine(a: str, b: str) -> float:
    """Return the cosine of the counts of words and pairs of words, without hashing."""

    def counts(text: str) -> Counter[Any]:
        words = text.lower().split()
        return Counter([*words, *pairwise(words)])

    first, second = counts(a), counts(b)
    lengths = [sum(n * n for n in c.values()) ** 0.5 for c in (first, second)]
    return float(sum(n * second[gram] for gram, n in first.items()) / (lengths[0] * lengths[1]))


def test_lexical_cosine_equals_cosine_of_the_counts() -> None:
    """No two of these n-grams get the same of the 2**14 dimensions, so the cosine is exact."""
    texts = ["the cat sat on the mat", "The dog sat on the mat", "stock prices fell", "the the the cat"]
    vectors = encode_texts(LEXICAL, texts)
    for i, first in enumerate(texts):
        for j, second in enumerate(texts):
            assert vectors[i] @ vectors[j] == pytest.approx(cosine(first, second), abs=1e-6)


def test_lexical_vector_depends_on_its_text_alone_and_is_zero_if_empty() -> None:
    together = encode_texts(LEXICAL, ["你好 🙂", "", "a cat"])
    np.testing.assert_array_equal(together[1], 0)
    np.testing.assert_allclose(np.linalg.norm(together[[0, 2]], axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(encode_texts(LEXICAL, ["a cat"])[0], together[2])


def test_unit_scales_rows_to_length_one_except_zeros() -> None:
    scaled = unit(np.array([[3, 4], [0, 0]], dtype=np.float32))
    np.testing.assert_allclose(scaled, [[0.6, 0.8], [0, 0]], atol=1e-7)
    assert scaled.dtype == np.float32


LONG = " ".join(f"Step {i}: add {i} apples to the basket and count them." for i in range(40))


def test_unread_counts_tokens_beyond_the_window() -> None:
    """As in the paper, the encoder cuts a text. It reads 62 tokens, [CLS] and [SEP]."""
    texts = ["short", LONG + " Eat them.", LONG + " Sell them."]
    with MINILM.open("cpu") as encode:
        vectors, counts = encode(texts), unread(encode, texts)
        lengths = [len(encode.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    np.testing.assert_allclose(vectors[1], vectors[2], atol=1e-6)
    assert counts.tolist() == [[n, max(0, n - 62)] for n in lengths]
    assert counts[0].tolist() == [1, 0]


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_windows_average_all_windows_of_a_long_text(prefix: str) -> None:
    texts = ["short", LONG + " Eat them.", LONG + " Sell them."]
    encoder = replace(MINILM, long_texts="windows", prefix=prefix)
    with encoder.open("cpu") as encode, replace(MINILM, prefix=prefix).open("cpu") as cut:
        vectors, counts, parts = encode(texts), unread(encode, texts), encode._parts(texts[1])
        assert unread(cut, parts)[:, 1].max() == 0
        expected = unit(cut(parts).mean(axis=0, keepdims=True))[0]
        np.testing.assert_allclose(vectors[0], cut(texts[:1])[0], atol=1e-6)
    assert "".join(parts) == texts[1]
    assert not any(a[-1:].isalnum() and b[:1].isalnum() for a, b in pairwise(parts))  # windows begin between words
    np.testing.assert_allclose(vectors[1], expected, atol=1e-6)
    assert float(vectors[1] @ vectors[2]) < 1 - 1e-4
    assert counts[:, 1].tolist() == [0, 0, 0]


def test_windows_cover_a_text_without_spaces() -> None:
    with replace(MINILM, long_texts="windows").open("cpu") as encode:
        parts = encode._parts("狗" * 300)
        assert "".join(parts) == "狗" * 300
        assert len(parts) > 1
        assert np.isfinite(encode(["狗" * 300, "x" * 3000])).all()


def test_embed_counts_truncated_texts_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = [("A short target.", [LONG + f" End {i}." for i in range(3)])]
    summary = embed(tmp_path, MINILM, Local(1, 2), prompts, "cpu")
    assert summary["texts_cut"] == 3
    assert 0.5 < summary["unread_fraction"] < 1
    assert "embed: 3 of 4 texts" in caplog.text
    assert "encoder.long_texts=windows" in caplog.text


def test_embed_by_windows_distinguishes_texts_with_a_common_beginning(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in shared_data("cases", "long_tail.jsonl").read_text().splitlines()]
    prompts = [(row["target"], row["responses"]) for row in rows[:1]]
    wide = replace(MINILM, max_tokens=256, batch_size=16)
    similarity = {}
    for long_texts in ("cut", "windows"):
        (folder := tmp_path / long_texts).mkdir()
        embed(folder, replace(wide, long_texts=long_texts), Local(1, 100), prompts, "cpu")
        vectors = Vectors(folder / CANDIDATES)
        similarity[long_texts] = float((vectors[0 : len(vectors)] @ Vectors(folder / TARGETS)[0:1][0]).min())
    assert similarity["cut"] > 0.999 > similarity["windows"]
