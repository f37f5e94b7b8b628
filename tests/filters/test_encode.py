"""The built-in encoder, for real, and embeddings as files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.filters.encode import BUILTIN, Embedded, Embeddings, Encode, SentenceEncoder, embed, similarity

TEXTS = ["a cat sits", "a cat is sitting", "stock prices fell", "", "你好 🙂", "word " * 600]
MINILM = SentenceEncoder(BUILTIN, None, "", 64, trust_remote_code=False, batch_size=4)


def encoded(encoder: SentenceEncoder, texts: Sequence[str]) -> Embeddings:
    with encoder.open("cpu") as encode:
        return encode(texts)


@pytest.fixture(scope="module")
def vectors() -> Embeddings:
    return encoded(MINILM, TEXTS)


def test_vectors_have_length_one(vectors: Embeddings) -> None:
    assert vectors.shape == (6, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_what_means_the_same_is_near(vectors: Embeddings) -> None:
    sits, sitting, stocks = vectors[:3]
    assert sits @ sitting > 0.8
    assert sits @ stocks < 0.3


def test_neither_order_nor_batch_changes_a_vector(vectors: Embeddings) -> None:
    order = [3, 5, 0, 4, 2, 1]
    shuffled = encoded(MINILM, [TEXTS[i] for i in order])
    np.testing.assert_allclose(shuffled, vectors[order], atol=1e-5)
    alone = SentenceEncoder(BUILTIN, None, "", 64, trust_remote_code=False, batch_size=1)
    np.testing.assert_allclose(encoded(alone, TEXTS), vectors, atol=1e-5)


def test_a_prefix_and_a_bound_on_tokens_change_what_is_read() -> None:
    def first(prefix: str, most: int, text: str) -> Any:
        return encoded(SentenceEncoder(BUILTIN, None, prefix, most, trust_remote_code=False, batch_size=4), [text])[0]

    np.testing.assert_allclose(first("query: ", 64, "a cat"), first("", 64, "query: a cat"), atol=1e-5)
    cut = first("", 5, "a cat sits on the stock market")
    np.testing.assert_allclose(cut, first("", 64, "a cat sits"), atol=1e-5)  # with [CLS] and [SEP], five tokens


def test_a_folder_that_is_not_there() -> None:
    MINILM.check()
    with pytest.raises(UserError, match=r"encoder\.path=\./nowhere: no such folder"):
        SentenceEncoder("./nowhere", None, "", 64, trust_remote_code=False, batch_size=4).check()


@dataclass
class Counting:
    """Vectors from a table; remembers what it was asked for."""

    table: dict[str, list[float]]
    asked: list[str] = field(default_factory=list)

    def check(self) -> None: ...

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        def encode(texts: Sequence[str]) -> Embeddings:
            self.asked += texts
            return np.array([self.table[text] for text in texts], dtype=np.float32)

        yield encode


def test_every_distinct_text_is_encoded_once_and_read_back(tmp_path: Path) -> None:
    table = {"b": [0.6, 0.8], "a": [1.0, 0.0], "ä\n🙂": [0.0, -1.0]}
    encoder = Counting(table)
    summary = embed(tmp_path, encoder, Local(1, 2), ["b", "a", "b", "ä\n🙂", "a"], "cpu")
    assert summary == {"texts": 5, "distinct": 3, "dimensions": 2}
    assert sorted(encoder.asked) == sorted(table)
    embedded = Embedded(tmp_path)
    texts = ["ä\n🙂", "a", "a", "b"]
    np.testing.assert_array_equal(embedded[texts], np.array([table[t] for t in texts], dtype=np.float32))
    np.testing.assert_allclose(similarity(embedded, "a", ["b", "ä\n🙂", "a"]), [0.6, 0, 1], atol=1e-6)
    with pytest.raises(KeyError):
        embedded[["c"]]
