"""Build a prompt's pool, from which negatives are selected: its distinct candidates, without copies of the target."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt's target and its candidates.

    Attributes:
        id: example id.
        target: text of the target; "" without one.
        target_vector: embedding of length one [d]; None without a target.
        texts: the candidates in sampling order.
        vectors: their embeddings of length one [n, d].
        log_probs: the sampler's log-probability of each response, in nats at temperature 1 [n]; NaN if unknown.
        tokens: length of each response [n].
        ended: False for truncated responses [n]; None if all are complete.
    """

    id: str
    target: str
    target_vector: Floats | None
    texts: Sequence[str]
    vectors: Floats
    log_probs: Floats
    tokens: Indices
    ended: Sequence[bool] | None = None


@dataclass(frozen=True)
class Pool:
    """A prompt's distinct candidates, sorted by ascending similarity to the target; ties are sorted by text.

    Without a target they are sorted by text. The order of sampling has no effect.

    Attributes:
        similarity: cosine to the target [n], ascending; NaN without a target.
        vectors: embeddings of length one [n, d].
        scores: scores by the verifier or reward model [n]; None without either.
        consensus: mean cosine to the prompt's other responses [n], in [-1, 1]; see `consensus`.
        log_probs: the sampler's log-probability of each response, in nats at temperature 1 [n]; NaN if unknown.
        tokens: length of each response [n].
        counts: how often each candidate was sampled [n].
        seed: seed of all random choices for this prompt, from `Filter.seed` and the example's id.
        samples: number of sampled responses, repetitions included.
        excluded: cosines to the target of the empty response and the copy of the target, if they were sampled. They
            cannot be negatives.
    """

    similarity: Floats
    vectors: Floats
    scores: Floats | None
    consensus: Floats
    log_probs: Floats
    tokens: Indices
    counts: Indices
    seed: list[int]
    samples: int
    excluded: Floats

    @property
    def log_prob_per_token(self) -> Floats:
        """Return the log-probability per token in nats [n]; NaN if unknown."""
        return self.log_probs / np.maximum(self.tokens, 1)


class Selector(Protocol):
    """Select the candidates of a pool that may be negatives.

    A selector that never uses similarities also has `needs_target: ClassVar[bool] = False`, and may be used for prompts
    without target. A selector that needs the sampler's log-probabilities also has
    `needs_log_probs: ClassVar[bool] = True`.

    Attributes:
        ranked: True if the order of the kept candidates is their ranking; otherwise ranks are drawn at random.
        scored: True if the selector needs scores.
    """

    ranked: ClassVar[bool]
    scored: ClassVar[bool]

    def max_kept(self, samples: int) -> int:
        """Bound how many of `samples` candidates are kept. Used to reject an impossible K before anything runs."""
        ...

    def select(self, pool: Pool) -> Indices:
        """Return indices of the kept candidates, without repetition."""
        ...


def needs_log_probs(selector: Selector) -> bool:
    """Return True if a selector declares that it needs `Pool.log_probs`."""
    return bool(getattr(selector, "needs_log_probs", False))


def needs_target(selector: Selector) -> bool:
    """Return True unless a selector declares that it does not need `Pool.similarity`."""
    return bool(getattr(selector, "needs_target", True))


def sort_distinct(sampled: SampledPrompt) -> tuple[Indices, Floats]:
    """Return indices of the distinct candidates in the order of a `Pool`, and their cosines to the target [n]."""
    indices = distinct(sampled.target, sampled.texts)
    cosines = _cosines(sampled, indices)
    order = sorted(range(len(indices)), key=lambda i: (np.nan_to_num(cosines[i]), sampled.texts[indices[i]]))
    return np.array(indices, dtype=np.intp)[order], cosines[order]


def build_pool(
    sampled: SampledPrompt, rows: Indices, similarity: Floats, scores: Floats | None, seed: list[int]
) -> Pool:
    """Build the pool of the candidates at `rows`, which `sort_distinct` returns with their similarity."""
    counts = Counter(text.strip() for text in sampled.texts)
    return Pool(
        similarity=similarity,
        vectors=sampled.vectors[rows],
        scores=scores,
        consensus=consensus(sampled, rows),
        log_probs=sampled.log_probs[rows],
        tokens=sampled.tokens[rows],
        counts=np.array([counts[sampled.texts[row].strip()] for row in rows], dtype=np.intp),
        seed=seed,
        samples=len(sampled.texts),
        excluded=_cosines(sampled, excluded(sampled.target, sampled.texts)),
    )


def distinct(target: str, texts: Sequence[str]) -> list[int]:
    """Return indices of the texts that are not empty, not a copy of the target, and not a repetition.

    The first of equal texts is kept with its own tokens and log-probability. The later ones may consist of other
    tokens, with another log-probability.
    """
    known_texts = {"", target.strip()}
    kept = []
    for i, text in enumerate(texts):
        stripped = text.strip()
        if stripped not in known_texts:
            known_texts.add(stripped)
            kept.append(i)
    return kept


def excluded(target: str, texts: Sequence[str]) -> list[int]:
    """Return indices of the first empty text and the first copy of the target, if they exist."""
    stripped = [text.strip() for text in texts]
    return [stripped.index(text) for text in dict.fromkeys(("", target.strip())) if text in stripped]


def consensus(sampled: SampledPrompt, rows: Indices) -> Floats:
    """Return the mean cosine of the candidates at `rows` to all N - 1 other responses of their prompt, float32 [n].

    A text sampled c times is compared with c - 1 copies of itself, with a cosine of 1: repetition is agreement. Copies
    of the target and empty responses count like any other, so no target is needed. A single response gets 0.
    """
    others = len(sampled.texts) - 1
    if not others:
        return np.zeros(len(rows), dtype=np.float32)
    by_text = sorted(range(others + 1), key=sampled.texts.__getitem__)  # the sum must not depend on sampling order
    total = sampled.vectors[by_text].sum(axis=0, dtype=np.float64)
    means: Floats = ((sampled.vectors[rows].astype(np.float64) @ total - 1) / others).astype(np.float32)
    return means


def _cosines(sampled: SampledPrompt, rows: list[int]) -> Floats:
    """Return the cosines of the candidates at `rows` to the target [n]; NaN without a target."""
    if sampled.target_vector is None:
        return np.full(len(rows), np.nan, dtype=np.float32)
    cosines: Floats = np.clip(sampled.vectors[rows] @ sampled.target_vector, -1, 1)
    return cosines
