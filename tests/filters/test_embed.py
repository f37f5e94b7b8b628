"""Test the embed stage: it encodes texts once, and its vectors are read back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.filters import embed as stage
from selfcontrast.filters.embed import CANDIDATES, TARGETS, Vectors, embed
from selfcontrast.filters.encode import Embeddings, Encode
from selfcontrast.store import RESUME

TABLE = {"b": [0.6, 0.8], "a": [1.0, 0.0], "ä\n🙂": [0.0, -1.0], "long": [0.8, -0.6]}


@dataclass
class TableEncoder:
    """An encoder that looks vectors up in a table and records its calls."""

    calls: list[list[str]] = field(default_factory=list)

    def check(self) -> None: ...

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        def encode(texts: Sequence[str]) -> Embeddings:
            self.calls.append([*texts])
            return np.array([TABLE[text] for text in texts], dtype=np.float32)

        yield encode


PROMPTS = [("a", ["b", "long", "b"]), ("long", []), ("b", ["ä\n🙂", "a"])]


def test_embed_encodes_distinct_texts_once_and_keeps_their_order(tmp_path: Path) -> None:
    encoder = TableEncoder()
    summary = embed(tmp_path, encoder, Local(1, 2), PROMPTS, "cpu")
    assert summary == {"texts": 8, "distinct": 4, "dimensions": 2}
    assert encoder.calls == [["a", "b"], ["ä\n🙂", "long"]]  # shards of two, sorted by length
    targets, candidates = Vectors(tmp_path / TARGETS), Vectors(tmp_path / CANDIDATES)
    np.testing.assert_allclose(targets[0:3], [TABLE[t] for t, _ in PROMPTS], atol=2**-10)
    np.testing.assert_allclose(candidates[0:5], [TABLE[t] for _, ts in PROMPTS for t in ts], atol=2**-10)
    assert (len(targets), len(candidates)) == (3, 5)


def test_embed_reuses_existing_shards(tmp_path: Path) -> None:
    embed(tmp_path, TableEncoder(), Local(1, 2), PROMPTS, "cpu")
    for file in (TARGETS, CANDIDATES):
        (tmp_path / file).unlink()
    encoder = TableEncoder()
    assert len(list((tmp_path / RESUME).glob("*.parquet"))) == 2
    embed(tmp_path, encoder, Local(1, 2), PROMPTS, "cpu")
    assert encoder.calls == []
    assert len(Vectors(tmp_path / CANDIDATES)) == 5


@given(rows=st.integers(0, 23), block=st.integers(1, 9), data=st.data())
def test_vectors_slices_equal_slices_of_an_array(rows: int, block: int, data: Any) -> None:
    import tempfile

    begin = data.draw(st.integers(0, rows))
    end = data.draw(st.integers(begin, rows))
    angles = np.arange(rows) / 7
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        patched.setattr(stage, "ROWS", block)
        stage._write(Path(folder) / "v.arrow", vectors, np.zeros(rows, dtype=np.uint64), np.arange(rows))
        stored = Vectors(Path(folder) / "v.arrow")
        assert len(stored) == rows
        np.testing.assert_allclose(stored[begin:end], vectors[begin:end], atol=2**-10)
        np.testing.assert_allclose(np.linalg.norm(stored[begin:end], axis=1), 1, atol=1e-6)


def test_stored_cosines_are_within_the_documented_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((200, 384))
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    stage._write(tmp_path / "v.arrow", exact.astype(np.float16), np.zeros(200, dtype=np.uint64), np.arange(200))
    stored = Vectors(tmp_path / "v.arrow")[0:200]
    assert np.abs(stored @ stored.T - exact @ exact.T).max() < 2**-10


def test_vectors_file_is_plain_arrow(tmp_path: Path) -> None:
    embed(tmp_path, TableEncoder(), Local(1, 2), PROMPTS, "cpu")
    with pa.ipc.open_file(str(tmp_path / TARGETS)) as file:
        table = file.read_all()
    assert table.schema == pa.schema({"embedding": pa.list_(pa.float16(), 2), "text": pa.uint64()})


def test_vectors_of_other_texts_raise(tmp_path: Path) -> None:
    embed(tmp_path, TableEncoder(), Local(1, 2), PROMPTS, "cpu")
    vectors = Vectors(tmp_path / CANDIDATES)
    texts = [text for _, texts in PROMPTS for text in texts]
    np.testing.assert_array_equal(vectors.of(0, texts), vectors[0:5])
    np.testing.assert_array_equal(vectors.of(3, texts[3:]), vectors[3:5])
    assert vectors.of(5, []).shape == (0, 2)
    for begin, wrong in ((1, texts[:4]), (0, [*texts[:4], "b"]), (0, texts[::-1])):
        with pytest.raises(UserError, match=r"vectors .*recompute=\[embed\]"):
            vectors.of(begin, wrong)
