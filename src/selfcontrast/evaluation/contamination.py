"""Which benchmark prompts stand, or nearly stand, among the training prompts: a score on them shows memory.

Two rules, either of which flags a prompt. By *n-grams*: the share of the prompt's word n-grams that one training
prompt holds too (Brown et al. 2020, arXiv 2005.14165, appendix C, counts any overlap; a share of one training prompt
tells a copy from a common phrase). By *embedding*: the cosine to the nearest training prompt, which finds what was
reworded (Yang et al. 2023, arXiv 2311.04850). What is compared is what the user says, without system prompts, which
all examples of a data set may share, and without replies.
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
UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese and Japanese: a word is a character
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")

_BLOCK = 4096  # training prompts compared at once with all of a benchmark

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Contamination:
    """When a benchmark prompt counts as seen in training.

    Attributes:
        ngram: words in a row, at least 2; a prompt of fewer words is flagged by an equal prompt alone.
        containment: share of the prompt's n-grams in one training prompt, in (0, 1], from which on it is flagged.
        similarity: cosine to the nearest training prompt's embedding, in (0, 1], from which on it is flagged; None
            computes no embeddings.
        encoder: embeds the prompts; not used where `similarity` is None.
    """

    ngram: Annotated[Count, Field(ge=2, le=1000)]
    containment: Fraction
    similarity: Fraction | None
    encoder: Encoder

    def __post_init__(self) -> None:
        check_numbers(self, "evaluation.contamination")

    def check(self) -> None:
        """Raise `UserError` where the encoder is needed and known to be missing."""
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
    """Writes `find_contamination` of each benchmark (prompts by id) to `folder`; returns how many were flagged."""
    training = list(dict.fromkeys(training))
    frames = []
    for name, prompts in benchmarks.items():
        frame = find_contamination(settings, list(prompts.values()), training, device)
        frame.insert(0, "benchmark", name)
        frame.insert(1, "id", list(prompts))
        frames.append(frame)
    found = pd.concat(frames, ignore_index=True)
    found.to_parquet(folder / FILE)
    counts = found.groupby("benchmark", sort=False)["flagged"].agg(["size", "sum"])
    flat = {"prompts": counts["size"], "flagged": counts["sum"]}
    return {f"{name}/{what}": int(count) for what, column in flat.items() for name, count in column.items()}


def find_contamination(
    settings: Contamination, prompts: Sequence[str], training: Sequence[str], device: str
) -> pd.DataFrame:
    """One row per prompt [n], in order; ValueError where there is no training prompt.

    Columns: `prompt`; `containment` in [0, 1] and `copied`, the training prompt that holds most of its n-grams (""
    where none holds any); `similarity` and `nearest`, the cosine to the nearest training prompt and its text (NaN and
    "" where `settings.similarity` is None); `flagged`; `match`, the training prompt that it is flagged for, else "".
    """
    if not training:
        raise ValueError("no training prompts to compare with")
    share, holder = containment(prompts, training, settings.ngram)
    copied = [training[at] if found > 0 else "" for at, found in zip(holder, share, strict=True)]
    by_words = share >= settings.containment
    similarity, nearest = np.full(len(prompts), np.nan), [""] * len(prompts)
    if settings.similarity is not None:
        similarity, closest = nearest_cosine(prompts, training, settings.encoder, device)
        nearest = [training[at] for at in closest]
    by_meaning = similarity >= (settings.similarity or 1.0)  # never of NaN
    matches = zip(by_words, copied, by_meaning, nearest, strict=True)
    return pd.DataFrame(
        {
            "prompt": list(prompts),
            "containment": share,
            "copied": copied,
            "similarity": similarity,
            "nearest": nearest,
            "flagged": by_words | by_meaning,
            "match": [copy if words else near if meaning else "" for words, copy, meaning, near in matches],
        }
    )


def containment(prompts: Sequence[str], training: Sequence[str], ngram: int) -> tuple[Numbers, Places]:
    """Per prompt the largest share of its distinct n-grams that one training prompt holds [n], and whose it is [n].

    The first training prompt of several with one share. 0 for a prompt without a word.
    """
    own = [_ngrams(prompt, ngram) for prompt in prompts]
    column = {gram: at for at, gram in enumerate(dict.fromkeys(gram for grams in own for gram in grams))}
    benchmark = _incidence([[column[gram] for gram in grams] for grams in own], len(column)).T.tocsr()
    sizes = np.array([len(grams) for grams in own], dtype=np.float64)
    best, holder = np.zeros(len(own)), np.zeros(len(own), dtype=np.int64)
    for start, block in _blocks(training):
        known = [[column[gram] for gram in _ngrams(text, ngram) if gram in column] for text in block]
        shared = (_incidence(known, len(column)) @ benchmark).toarray()  # [block, n]
        at = shared.argmax(axis=0)
        most = shared[at, np.arange(len(own))]
        better = most > best
        best[better], holder[better] = most[better], start + at[better]
    return best / np.maximum(sizes, 1), holder


def nearest_cosine(
    prompts: Sequence[str], training: Sequence[str], encoder: Encoder, device: str
) -> tuple[Numbers, Places]:
    """Per prompt the cosine to its nearest training prompt [n], and which that is [n]."""
    texts = list(dict.fromkeys([*prompts, *training]))
    row = {text: at for at, text in enumerate(texts)}
    with encoder.open(device) as encode:
        vectors, counts = encode(texts), unread(encode, texts)
    report_unread("contamination", counts, "tokens", "raise encoder.max_tokens, or use encoder.long_texts=windows")
    own = vectors[[row[prompt] for prompt in prompts]]
    best, nearest = np.full(len(prompts), -np.inf), np.zeros(len(prompts), dtype=np.int64)
    for start, block in _blocks(training):
        cosines = vectors[[row[text] for text in block]] @ own.T  # [block, n]
        at = cosines.argmax(axis=0)
        most = cosines[at, np.arange(len(own))]
        better = most > best
        best[better], nearest[better] = most[better], start + at[better]
    return best, nearest


def user_text(example: Example) -> str:
    """What the user says in an example, played or not, a line per message."""
    said = example.turns or [message["content"] for message in example.prompt if message["role"] == "user"]
    return "\n".join(said)


def _ngrams(text: str, size: int) -> set[tuple[str, ...]]:
    """The distinct runs of `size` words, in small letters and without punctuation; of a shorter text, all of it."""
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    if len(words) < size:
        return {tuple(words)} if words else set()
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


def _incidence(rows: Sequence[Sequence[int]], columns: int) -> "csr_array":
    """A sparse matrix [rows, columns] with 1 at the columns that each row names."""
    from scipy.sparse import csr_array

    ends = np.cumsum([0, *(len(row) for row in rows)])
    indices = np.array([at for row in rows for at in row], dtype=np.int64)
    return csr_array((np.ones(len(indices), dtype=np.int32), indices, ends), shape=(len(rows), columns))


def _blocks(training: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    for start in range(0, len(training), _BLOCK):
        yield start, training[start : start + _BLOCK]
