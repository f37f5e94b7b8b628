"""Build candidate pools, and hypothesis strategies of pools and selectors, for tests of the filter."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from selfcontrast.filters.diverse import Clusters, LogDeterminant, MaximalMarginalRelevance
from selfcontrast.filters.pool import Pool, SampledPrompt
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import (
    Everything,
    LeastConsistent,
    LeastConsistentFirst,
    LeastLikely,
    LeastSimilar,
    LessSimilarThan,
    LowestFirst,
    LowestRanked,
    LowestScored,
    MostSimilarBelow,
    NearestBelowMean,
    Random,
    RankWindow,
)

NAMES = st.text(min_size=1, max_size=8)
SEEDS = st.integers(0, 10**6)
FRACTIONS = st.floats(0.05, 1)
THRESHOLDS = st.floats(-0.875, 1, width=32)
OF = st.sampled_from(["distinct", "samples"])
SIGNALS = st.lists(st.sampled_from(["similarity", "consensus", "log_prob"]), min_size=2, max_size=3, unique=True)
RIDGES = st.floats(0.01, 10)
SELECTORS = st.one_of(
    st.just(Everything()),
    st.just(LowestFirst()),
    st.just(LeastConsistentFirst()),
    st.builds(LeastSimilar, fraction=FRACTIONS, of=OF),
    st.builds(Random, fraction=FRACTIONS, of=OF),
    THRESHOLDS.map(LessSimilarThan),
    THRESHOLDS.map(MostSimilarBelow),
    st.tuples(st.floats(0, 0.5), st.floats(0.55, 1)).map(lambda window: RankWindow(*window)),
    st.builds(LowestScored, fraction=FRACTIONS, below=st.one_of(st.none(), st.floats(0, 1, width=32))),
    st.builds(MaximalMarginalRelevance, fraction=FRACTIONS, weight=st.floats(0, 1)),
    st.builds(LeastConsistent, fraction=FRACTIONS, of=OF),
    st.builds(LeastLikely, fraction=FRACTIONS, of=OF),
    st.builds(LowestRanked, fraction=FRACTIONS, of=OF, signals=SIGNALS),
    st.builds(NearestBelowMean, sigmas=st.floats(0, 4)),
    st.builds(LogDeterminant, fraction=FRACTIONS, ridge=RIDGES),
    st.builds(Clusters, fraction=FRACTIONS, clusters=st.integers(1, 6), iterations=st.integers(1, 8)),
)


def pool(
    similarity: Any,
    scores: Any = None,
    seed: int = 0,
    width: int = 3,
    repeated: int = 0,
    excluded: Any = (),
    **arrays: Any,
) -> Pool:
    """Build candidates with the cosines `similarity` to the target (1, 0, 0, …), in otherwise random directions.

    Args:
        repeated: number of samples that repeat a random candidate.
        excluded: cosines of an empty response and of a copy of the target.
        arrays: `consensus`, `log_probs`, `tokens` and `counts`. By default, each is drawn at random from a coarse grid.
    """
    cosines, rng = np.sort(np.asarray(similarity, dtype=np.float32)), np.random.default_rng(seed)
    count = len(cosines)
    rest = rng.standard_normal((count, width - 1))
    rest *= np.sqrt(1 - cosines.astype(float) ** 2)[:, None] / np.linalg.norm(rest, axis=1, keepdims=True)
    excluded_cosines = np.asarray(excluded, dtype=np.float32)
    columns: dict[str, Any] = {
        "consensus": rng.integers(-4, 5, count).astype(np.float32) / 4,
        "log_probs": -rng.integers(1, 9, count).astype(np.float64),
        "tokens": rng.integers(1, 5, count),
        "counts": 1 + np.bincount(rng.integers(0, max(1, count), repeated if count else 0), minlength=count)[:count],
    }
    return Pool(
        similarity=cosines,
        vectors=np.concatenate([cosines[:, None], rest], axis=1).astype(np.float32),
        scores=None if scores is None else np.asarray(scores, np.float32),
        **columns | {name: np.asarray(values) for name, values in arrays.items()},
        seed=[seed],
        samples=count + len(excluded_cosines) + repeated,
        excluded=excluded_cosines,
    )


@st.composite
def pools(draw: st.DrawFn, max_size: int = 24) -> Pool:
    """Draw pools with tied scores and repetitions, some with an empty response or a copy of the target."""
    cosines = draw(st.lists(st.floats(-1, 1, width=32), max_size=max_size))
    scores = draw(st.lists(st.integers(0, 4), min_size=len(cosines), max_size=len(cosines)))
    empty, copy = draw(st.one_of(st.just([]), st.floats(-1, 1, width=32).map(lambda x: [x]))), draw(st.booleans())
    excluded = [*empty, *([1.0] if copy else [])]
    return pool(cosines, np.array(scores) / 4, draw(st.integers(0, 99)), 3, draw(st.integers(0, 12)), excluded)


def filter_settings(
    max_negatives: int, on_shortage: str = "drop_everywhere", selector: Any = None, seed: int = 42
) -> Filter:
    return Filter(selector or LeastSimilar(0.75, "distinct"), max_negatives, on_shortage, seed, None)


def sampled_prompt(texts: list[str], vectors: Any, log_probs: Any = None) -> SampledPrompt:
    """Build a prompt's candidates. The target has the vector of the first candidate."""
    rows = np.asarray(vectors, dtype=np.float32)
    values = np.arange(-len(texts), 0.0) if log_probs is None else np.asarray(log_probs)
    return SampledPrompt("p", "target", rows[0], texts, rows, values, np.arange(1, len(texts) + 1))


def angle(degrees: float) -> list[float]:
    """Return the unit vector at this angle."""
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]
