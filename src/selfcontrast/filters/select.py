"""Which candidates become negatives, and in which order.

A prompt's distinct candidates (less empty ones and copies of the target) go through a selector. What it keeps is drawn
in a seeded random order, or in the selector's own order where it has one; rank k of that order is negative k. A run
with K negatives takes the first K ranks, so its negatives are a subset of those for any larger K; and every K sees the
same prompts, because which prompts can be used is decided for the whole pool (`max_negatives`), not for K.

Where a candidate is chosen (y+) in place of the target or beside it, it is taken out of what the selector keeps, and
with it every response of the same text; where it is chosen by its score, every one of the same score, too: none of
these is worse. The selector itself sees all distinct candidates.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from selfcontrast.constrained import Samples, Seed, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.models.reward import RewardModel
from selfcontrast.store import NOT_IN_KEY

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.intp]
Score = Callable[[list[int]], tuple[Floats, float]]
SHORTAGES = ("drop_everywhere", "refill", "error")
PRECISION = 1e-6  # of scores and cosines, which are stored in single and half precision


@dataclass(frozen=True)
class Pool:
    """A prompt's distinct candidates, the least similar to the target first (of equally similar ones, by text).

    That order is the candidates' own, so nothing depends on the order in which they were sampled.

    Attributes:
        similarity: cosine to the target [n], ascending; NaN where there is no target.
        vectors: embeddings of length one [n, d].
        scores: by the verifier or reward model [n]; None where neither is there.
        consensus: mean cosine to the prompt's other responses [n], in [-1, 1], as `consensus` has it.
        log_probs: of the sampler, in nats at temperature 1, summed over the response [n]; NaN where nobody knows.
        tokens: of the response [n].
        counts: how often each candidate was sampled [n].
        seed: of whatever is random; depends on the prompt alone, not on other prompts.
        samples: how many responses were sampled, repetitions included.
        excluded: cosines of the distinct responses that can never be negatives: an empty one, a copy of the target.
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
        """Nats per token [n]; NaN where nobody knows."""
        return self.log_probs / np.maximum(self.tokens, 1)


class Selector(Protocol):
    """Which of a prompt's distinct candidates may be negatives.

    One that never looks at similarities has `needs_target: ClassVar[bool] = False`, and is used for prompts without
    target, too. One that needs the sampler's log-probabilities has `needs_log_probs: ClassVar[bool] = True` besides.

    Attributes:
        ranked: whether the order of what it keeps is the order of the ranks; otherwise they are drawn from it.
        scored: whether it needs scores.
    """

    ranked: ClassVar[bool]
    scored: ClassVar[bool]

    def max_kept(self, samples: int) -> int:
        """Bound how many candidates are kept of `samples` responses. Used to reject an impossible K before compute."""
        ...

    def select(self, pool: Pool) -> Indices:
        """Indices of the candidates kept, no two of them equal."""
        ...


def needs_log_probs(selector: Selector) -> bool:
    """Whether a selector needs `Pool.log_probs`. Those that do not need not say so."""
    return bool(getattr(selector, "needs_log_probs", False))


def needs_target(selector: Selector) -> bool:
    """Whether a selector needs `Pool.similarity`. Those that do not say so."""
    return bool(getattr(selector, "needs_target", True))


@dataclass(frozen=True)
class Contenders:
    """The candidates of a prompt that may be chosen, in the order of their texts.

    They are distinct and not empty, and ended by themselves: a policy trained on one that was cut would not end. A
    copy of the target may be one of them.

    Attributes:
        scores: by the verifier or reward model [n]; None where neither is there.
        consensus: mean cosine of each to the prompt's other responses [n], in [-1, 1].
    """

    scores: Floats | None
    consensus: Floats


class Chosen(Protocol):
    """Which response of a prompt is chosen: y+, which training makes likelier than the negatives.

    Attributes:
        target: whether the target is.
        candidate: whether a candidate is; with `target` both are, each in a group of its own.
        scored: whether it needs scores.
    """

    target: ClassVar[bool]
    candidate: ClassVar[bool]
    scored: ClassVar[bool]

    def value(self, contenders: Contenders) -> Floats:
        """Return what the chosen candidate has most of [n]. Of equal ones one is drawn, by `Filter.seed`."""
        ...


@dataclass(frozen=True)
class Filter:
    """A selector, and what every K of a sweep has in common.

    Attributes:
        selector: which candidates may be negatives.
        max_negatives: ranks drawn per prompt; K is at most this.
        on_shortage: what becomes of a prompt with fewer kept candidates than `max_negatives`: it is dropped for every
            K, filled up at its last ranks with the least similar of those that the selector left out (and dropped where
            those are too few), or an error.
        seed: of the draw.
        reward_model: a `selfcontrast.models.reward.RewardModel` that scores candidates in place of the verifier;
            None for it, where there is one.
    """

    selector: Selector
    max_negatives: Samples
    on_shortage: str
    seed: Seed
    reward_model: RewardModel | None = field(metadata=NOT_IN_KEY)  # its scores are an input of the stage

    def __post_init__(self) -> None:
        check_numbers(self, "filter")
        if self.on_shortage not in SHORTAGES:
            raise UserError(f"filter.on_shortage={self.on_shortage}: one of {', '.join(SHORTAGES)}")

    def check(self, negatives: int, samples: int, verified: bool, log_probs: bool) -> None:
        """Raise `UserError` where no prompt can give that many negatives, or the selector lacks what it goes by.

        Args:
            verified: whether there is a verifier.
            log_probs: whether the generator can know the log-probabilities of its candidates.
        """
        if negatives > self.max_negatives:
            raise UserError(
                f"negatives={negatives} is more than filter.max_negatives={self.max_negatives}: raise that, or lower K"
            )
        most = samples if self.on_shortage == "refill" else self.selector.max_kept(samples)
        if self.max_negatives > most:
            raise UserError(
                f"filter.max_negatives={self.max_negatives} is impossible: of generator.samples={samples} the filter "
                f"keeps {most} at most. Sample more, keep more, or ask for fewer"
            )
        if self.reward_model is not None:
            self.reward_model.check()
        elif self.selector.scored and not verified:
            raise UserError(
                f"filter.selector={type(self.selector).__name__} needs scores, and there is no verifier: "
                "add +reward_model@filter.reward_model=classifier filter.reward_model.path=MODEL, or use another filter"
            )
        if needs_log_probs(self.selector) and not log_probs:
            raise UserError(
                f"filter.selector={type(self.selector).__name__} needs the sampler's log-probabilities, and this "
                "generator has none: use generator=hf or generator=vllm, or another filter, such as "
                "filter=least_consistent"
            )


@dataclass(frozen=True)
class Drawn:
    """What was decided for a prompt.

    Attributes:
        kept: by the selector.
        ranks: the negatives in rank order: `max_negatives` of them, or none.
        refilled: how many of the last ranks the selector had left out.
        taken: the candidates that can be no negatives because of what is chosen: neither kept nor drawn.
    """

    kept: Indices
    ranks: Indices
    refilled: int
    taken: Indices


@dataclass(frozen=True)
class Sampled:
    """A prompt and its candidates.

    Attributes:
        id: the example's.
        target: its text; "" where there is none.
        target_vector: of length one [d]; None where there is no target.
        texts: the candidates', as they were sampled.
        vectors: theirs, of length one [n, d].
        log_probs: the sampler's, in nats at temperature 1, summed over each response [n]; NaN where nobody knows.
        tokens: of each response [n].
        ended: whether each ended by itself, and was not cut [n]; None where all did.
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
class Best:
    """A prompt's chosen candidate.

    Attributes:
        row: which of the candidates it is.
        score: of it; None where nothing scores.
        is_target: whether its text is the target's.
    """

    row: int
    score: float | None
    is_target: bool


@dataclass(frozen=True)
class Choice:
    """What was decided of a prompt.

    Attributes:
        rows: which of the candidates are the pool's [n].
        pool: the distinct candidates.
        good: whether each is as good as the target [n]; None where nothing scores, or a reward model has no target to.
        drawn: indices into `rows`.
        chosen: the candidate that is chosen; None where none is.
    """

    rows: Indices
    pool: Pool
    good: NDArray[np.bool_] | None
    drawn: Drawn
    chosen: "Best | None" = None

    @property
    def negatives(self) -> Indices:
        """Which of the candidates are negatives, in rank order."""
        return self.rows[self.drawn.ranks]


def choose(settings: Filter, sampled: Sampled, score: Score | None = None, chosen: Chosen | None = None) -> Choice:
    """A prompt's pool, the negatives that are drawn from it, and the candidate that is chosen.

    Args:
        score: of the candidates at some indices, how good they are, and the least that is as good as the target. It is
            called once.
        chosen: which response is; None for the target.

    Raises:
        UserError: for too few negatives, or no candidate to choose, where the settings want that to be an error; for
            candidates without log-probabilities, where the selector needs them.
    """
    found = distinct(sampled.target, sampled.texts)
    cosines = _cosines(sampled, found)
    order = sorted(range(len(found)), key=lambda i: (np.nan_to_num(cosines[i]), sampled.texts[found[i]]))
    rows = np.array(found, dtype=np.intp)[order]
    own = contenders(sampled) if chosen is not None and chosen.candidate else []
    known = {sampled.texts[row].strip() for row in rows}
    copies = [row for row in own if sampled.texts[row].strip() not in known]
    scores, threshold = score([*rows.tolist(), *copies]) if score else (None, 0.0)
    never = _cosines(sampled, excluded(sampled.target, sampled.texts))
    if needs_log_probs(settings.selector):
        _check_log_probs(settings.selector, sampled, rows)
    seed = seed_of(settings, sampled.id)
    in_pool = None if scores is None else scores[: len(rows)]
    counts = Counter(text.strip() for text in sampled.texts)
    pool = Pool(
        similarity=cosines[order],
        vectors=sampled.vectors[rows],
        scores=in_pool,
        consensus=consensus(sampled, rows),
        log_probs=sampled.log_probs[rows],
        tokens=sampled.tokens[rows],
        counts=np.array([counts[sampled.texts[row].strip()] for row in rows], dtype=np.intp),
        seed=seed,
        samples=len(sampled.texts),
        excluded=never,
    )
    good = None if in_pool is None or np.isnan(threshold) else in_pool >= threshold
    if chosen is None or not chosen.candidate:
        return Choice(rows, pool, good, draw(settings, sampled.id, pool))
    if not own:
        return Choice(rows, pool, good, _without_chosen(settings, sampled.id, pool))
    scored = None if scores is None else _by_text(sampled, [*rows.tolist(), *copies], scores)
    best = _best(chosen, sampled, own, scored, seed)
    taken = np.array([sampled.texts[row].strip() == sampled.texts[best.row].strip() for row in rows], dtype=bool)
    if chosen.scored and in_pool is not None and best.score is not None:
        taken |= in_pool >= best.score - PRECISION  # as good as the chosen one, so not worse
    return Choice(rows, pool, good, draw(settings, sampled.id, pool, np.flatnonzero(taken).tolist()), best)


def _cosines(sampled: Sampled, rows: list[int]) -> Floats:
    """Of these candidates to the target [n]; NaN without target."""
    if sampled.target_vector is None:
        return np.full(len(rows), np.nan, dtype=np.float32)
    cosines: Floats = np.clip(sampled.vectors[rows] @ sampled.target_vector, -1, 1)
    return cosines


def contenders(sampled: Sampled) -> list[int]:
    """Return indices of the candidates that may be chosen, in the order of their texts: the first of each text."""
    first: dict[str, int] = {}
    for row, text in enumerate(sampled.texts):
        if text.strip() and (sampled.ended is None or sampled.ended[row]):
            first.setdefault(text.strip(), row)
    return [first[text] for text in sorted(first)]


def _by_text(sampled: Sampled, rows: Sequence[int], scores: Floats) -> dict[str, float]:
    return {sampled.texts[row].strip(): float(score) for row, score in zip(rows, scores, strict=True)}


def _best(
    chosen: Chosen, sampled: Sampled, own: Sequence[int], scored: Mapping[str, float] | None, seed: Sequence[int]
) -> Best:
    """The contender with the highest value; of equal ones (to `PRECISION`) one that the seed draws."""
    texts = [sampled.texts[row].strip() for row in own]
    scores = None if scored is None else np.array([scored[text] for text in texts], dtype=np.float32)
    value = chosen.value(Contenders(scores, consensus(sampled, np.array(own, dtype=np.intp))))
    highest = np.flatnonzero(value >= value.max() - PRECISION)
    apart = [*seed, 2]  # from the draw's, and from that of a selector by chance
    at = int(np.random.default_rng(apart).choice(highest))
    return Best(own[at], None if scores is None else float(scores[at]), texts[at] == sampled.target.strip())


def _without_chosen(settings: Filter, name: str, pool: Pool) -> Drawn:
    """What is drawn for a prompt of which nothing can be chosen: nothing."""
    if settings.on_shortage == "error":
        raise UserError(
            f"prompt {name} has no candidate to choose: all are empty or were cut. Sample more or longer responses "
            "(generator.samples, generator.max_new_tokens), or choose filter.on_shortage=drop_everywhere"
        )
    kept = settings.selector.select(pool)
    return Drawn(kept, kept[:0], 0, kept[:0])


def consensus(sampled: Sampled, rows: Indices) -> Floats:
    """Return the mean cosine of the candidates at `rows` to all other responses of their prompt, float32 [n].

    The others are all N - 1 of them. A text that was sampled c times is among its own others c - 1 times, with a
    cosine of 1: repetition is what agreement shows itself in. A copy of the target counts as any other response does,
    so this needs no target; so does an empty response. 0 for a response without others.
    """
    others = len(sampled.texts) - 1
    if not others:
        return np.zeros(len(rows), dtype=np.float32)
    by_text = sorted(range(others + 1), key=sampled.texts.__getitem__)  # a sum that no order of sampling changes
    total = sampled.vectors[by_text].sum(axis=0, dtype=np.float64)
    found: Floats = ((sampled.vectors[rows].astype(np.float64) @ total - 1) / others).astype(np.float32)
    return found


def _check_log_probs(selector: Selector, sampled: Sampled, rows: Indices) -> None:
    if unknown := int(np.isnan(sampled.log_probs[rows]).sum()):
        raise UserError(
            f"filter.selector={type(selector).__name__} needs the sampler's log-probability of every candidate, and "
            f"prompt {sampled.id} has {unknown} of {len(rows)} without: sample with generator=hf or generator=vllm, "
            "or use another filter, such as filter=least_consistent"
        )


def distinct(target: str, texts: Sequence[str]) -> list[int]:
    """Return indices of the texts without empty ones, copies of the target and repetitions.

    The first of equal ones stays, with its own tokens and log-probability: another of the same text may be spelled by
    other tokens, and have another.
    """
    seen = {"", target.strip()}
    kept = []
    for i, text in enumerate(texts):
        stripped = text.strip()
        if stripped not in seen:
            seen.add(stripped)
            kept.append(i)
    return kept


def excluded(target: str, texts: Sequence[str]) -> list[int]:
    """Indices of the first empty text and of the first copy of the target, where there is one."""
    stripped = [text.strip() for text in texts]
    return [stripped.index(text) for text in dict.fromkeys(("", target.strip())) if text in stripped]


def seed_of(settings: Filter, name: str) -> list[int]:
    """The seed of a prompt, by its example's id."""
    return [settings.seed, *name.encode()]


def draw(settings: Filter, name: str, pool: Pool, chosen: Sequence[int] = ()) -> Drawn:
    """The negatives of a prompt. Raises `UserError` for too few of them where the settings want that.

    Args:
        chosen: the candidates that can be no negatives because of what is chosen.
    """
    taken = np.array(chosen, dtype=np.intp)
    kept = settings.selector.select(pool)
    kept = kept[~np.isin(kept, taken)]
    order = kept if settings.selector.ranked else np.random.default_rng(pool.seed).permutation(kept)
    ranks = order[: settings.max_negatives]
    if (missing := settings.max_negatives - len(ranks)) == 0:
        return Drawn(kept, ranks, 0, taken)
    if settings.on_shortage == "refill":
        rest = np.setdiff1d(np.arange(len(pool.similarity)), [*kept, *taken])  # ascending: the least similar first
        if len(rest) >= missing:
            return Drawn(kept, np.concatenate([ranks, rest[:missing]]), missing, taken)
    if settings.on_shortage == "error":
        raise UserError(
            f"prompt {name} leaves {len(kept)} negatives of filter.max_negatives={settings.max_negatives} "
            f"({len(pool.similarity)} distinct candidates): sample more, or choose filter.on_shortage=drop_everywhere"
        )
    return Drawn(kept, ranks[:0], 0, taken)
