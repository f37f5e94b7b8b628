"""Find benchmark prompts that resemble a training prompt. A score on them measures memory.

Either of two rules flags a prompt:

- n-grams: the fraction of the prompt's word n-grams that a single training prompt contains. Brown et al. 2020 (arXiv
  2005.14165, appendix C) count any overlap. A fraction separates a copy from a common phrase.
- embedding: the cosine to the nearest training prompt. It finds reworded prompts (Yang et al. 2023, arXiv 2311.04850).

Only user messages are compared: a whole data set may have the same system prompt, and replies are not the question.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from selfcontrast.constrained import Count, Fraction, check_numbers
from selfcontrast.data.example import Example
from selfcontrast.filters.encode import Encoder
from selfcontrast.models.truncation import report_unread, unread
from selfcontrast.store import fields_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

VERSION = 1
FILE = "contamination.parquet"
UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese and Japanese: each character is a word
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")

_BLOCK = 4096  # number of training prompts that are compared with all prompts of a benchmark at once

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Contamination:
    """The rules that decide whether a benchmark prompt counts as seen in training.

    Attributes:
        ngram: words per n-gram, at least 2. A shorter prompt has n-grams in common only with a training prompt of the
            same words.
        containment: minimum fraction of the prompt's n-grams in one training prompt to flag it, in (0, 1].
        similarity: minimum cosine to the nearest training prompt's embedding to flag it, in (0, 1]; None computes no
            embeddings.
        encoder: embeds the prompts; unused if `similarity` is None.
    """

    ngram: Annotated[Count, Field(ge=2, le=1000)]
    containment: Fraction
    similarity: Fraction | None
    encoder: Encoder

    def __post_init__(self) -> None:
        check_numbers(self, "evaluation.contamination")

    def check(self) -> None:
        """Raise `UserError` if the encoder is needed and missing."""
        if self.similarity is not None:
            self.encoder.check()

    def fingerprint(self) -> dict[str, Any]:
        settings = fields_of(self)
        return settings if self.similarity is not None else {**settings, "encoder": None}


def check_benchmarks(
    folder: Path,
    settings: Contamination,
    benchmarks: Mapping[str, Mapping[str, str]],
    training: Sequence[str],
    device: str,
) -> dict[str, Any]:
    """Write the table of `find_contamination` for each benchmark to `folder`; count all prompts and flagged prompts.

    Args:
        benchmarks: by benchmark name, its prompts by id.
        training: the training prompts.
    """
    training = list(dict.fromkeys(training))
    frames = []
    for name, prompts in benchmarks.items():
        frame = find_contamination(settings, list(prompts.values()), training, device)
        frame.insert(0, "benchmark", name)
        frame.insert(1, "id", list(prompts))
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    table.to_parquet(folder / FILE)
    counts = table.groupby("benchmark", sort=False)["flagged"].agg(["size", "sum"])
    columns = {"prompts": counts["size"], "flagged": counts["sum"]}
    return {f"{name}/{kind}": int(count) for kind, column in columns.items() for name, count in column.items()}


def find_contamination(
    settings: Contamination, prompts: Sequence[str], training: Sequence[str], device: str
) -> pd.DataFrame:
    """Compare each prompt with the training prompts; return one row per prompt [n], in order.

    Columns:
        prompt: the prompt.
        containment: largest fraction of the prompt's n-grams in one training prompt, in [0, 1].
        copied: the training prompt with that fraction; "" if no training prompt shares an n-gram.
        similarity: cosine to the nearest training prompt; NaN if `settings.similarity` is None.
        nearest: the nearest training prompt; "" if `settings.similarity` is None.
        flagged: True if at least one rule applies.
        match: the training prompt that the prompt resembles; "" if the prompt is not flagged.

    Raises:
        ValueError: without training prompts.
    """
    if not training:
        raise ValueError("there are no training prompts to compare with. Give at least one.")
    fractions, sources = containment(prompts, training, settings.ngram)
    copied = [training[index] if value > 0 else "" for index, value in zip(sources, fractions, strict=True)]
    flagged_by_ngrams = fractions >= settings.containment
    similarity, nearest = np.full(len(prompts), np.nan), [""] * len(prompts)
    if settings.similarity is not None:
        similarity, indices = nearest_cosine(prompts, training, settings.encoder, device)
        nearest = [training[index] for index in indices]
    flagged_by_cosine = similarity >= (settings.similarity or 1.0)  # NaN compares as False
    matches = zip(flagged_by_ngrams, copied, flagged_by_cosine, nearest, strict=True)
    return pd.DataFrame(
        {
            "prompt": list(prompts),
            "containment": fractions,
            "copied": copied,
            "similarity": similarity,
            "nearest": nearest,
            "flagged": flagged_by_ngrams | flagged_by_cosine,
            "match": [
                copied_prompt if by_ngrams else nearest_prompt if by_cosine else ""
                for by_ngrams, copied_prompt, by_cosine, nearest_prompt in matches
            ],
        }
    )


def containment(prompts: Sequence[str], training: Sequence[str], ngram: int) -> tuple[Numbers, Indices]:
    """Return per prompt the largest fraction of its distinct n-grams in one training prompt, [n].

    The second array [n] holds the index of that training prompt, the first one if several have the same fraction. A
    prompt without words has fraction 0.
    """
    ngrams = [_ngrams(prompt, ngram) for prompt in prompts]
    column = {gram: i for i, gram in enumerate(dict.fromkeys(gram for grams in ngrams for gram in grams))}
    benchmark = _incidence([[column[gram] for gram in grams] for grams in ngrams], len(column)).T.tocsr()
    sizes = np.array([len(grams) for grams in ngrams], dtype=np.float64)
    best, sources = np.zeros(len(ngrams)), np.zeros(len(ngrams), dtype=np.int64)
    for start, block in _blocks(training):
        block_columns = [[column[gram] for gram in _ngrams(text, ngram) if gram in column] for text in block]
        shared = (_incidence(block_columns, len(column)) @ benchmark).toarray()  # [block, n]
        index = shared.argmax(axis=0)
        largest = shared[index, np.arange(len(ngrams))]
        better = largest > best
        best[better], sources[better] = largest[better], start + index[better]
    return best / np.maximum(sizes, 1), sources


def nearest_cosine(
    prompts: Sequence[str], training: Sequence[str], encoder: Encoder, device: str
) -> tuple[Numbers, Indices]:
    """Return per prompt the cosine to its nearest training prompt, and that prompt's index, both [n]."""
    texts = list(dict.fromkeys([*prompts, *training]))
    row = {text: i for i, text in enumerate(texts)}
    with encoder.open(device) as encode:
        vectors, counts = encode(texts), unread(encode, texts)
    report_unread("contamination", counts, "tokens", "raise encoder.max_tokens, or use encoder.long_texts=windows")
    queries = vectors[[row[prompt] for prompt in prompts]]
    best, nearest = np.full(len(prompts), -np.inf), np.zeros(len(prompts), dtype=np.int64)
    for start, block in _blocks(training):
        cosines = vectors[[row[text] for text in block]] @ queries.T  # [block, n]
        index = cosines.argmax(axis=0)
        largest = cosines[index, np.arange(len(queries))]
        better = largest > best
        best[better], nearest[better] = largest[better], start + index[better]
    return best, nearest


def user_text(example: Example) -> str:
    """Return the user's messages in an example, one per line."""
    messages = example.turns or [message["content"] for message in example.prompt if message["role"] == "user"]
    return "\n".join(messages)


def _ngrams(text: str, size: int) -> set[tuple[str, ...]]:
    """Return the distinct n-grams of `size` words, case-folded, without punctuation. A shorter text is one n-gram."""
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    if len(words) < size:
        return {tuple(words)} if words else set()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def _incidence(rows: Sequence[Sequence[int]], columns: int) -> "csr_array":
    """Build a sparse matrix [rows, columns] with 1 in each row at the given columns."""
    from scipy.sparse import csr_array

    ends = np.cumsum([0, *(len(row) for row in rows)])
    indices = np.array([index for row in rows for index in row], dtype=np.int64)
    return csr_array((np.ones(len(indices), dtype=np.int32), indices, ends), shape=(len(rows), columns))


def _blocks(training: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    for start in range(0, len(training), _BLOCK):
        yield start, training[start : start + _BLOCK]
