"""Select and rank the negatives of one prompt.

A selector filters a prompt's distinct candidates; empty ones and copies of the target are removed before. The kept
candidates are ranked by the selector, or else in a seeded random order; rank k is negative k. A run with K negatives
takes the first K ranks, so its negatives are a subset of those of any larger K. Every K sees the same prompts: a prompt
is usable if it fills the whole pool (`max_negatives`), whatever K is.

If a candidate is chosen (y+), instead of the target or as well, it cannot be a negative, nor can any response of the
same text. If it is chosen by its score, neither can a candidate of an equal or higher score, as it is no worse. The
selector itself sees all distinct candidates.
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
PRECISION = 1e-6  # scores and cosines this close count as equal: they are stored in single and half precision


@dataclass(frozen=True)
class Pool:
    """A prompt's distinct candidates, the least similar to the target first; equally similar ones by text.

    The order does not depend on the order in which they were sampled.

    Attributes:
        similarity: cosine to the target [n], ascending; NaN without a target.
        vectors: embeddings of length one [n, d].
        scores: scores by the verifier or reward model [n]; None without either.
        consensus: mean cosine to the prompt's other responses [n], in [-1, 1]; see `consensus`.
        log_probs: the sampler's, in nats at temperature 1, summed over the response [n]; NaN if unknown.
        tokens: length of the response [n].
        counts: how often each candidate was sampled [n].
        seed: for everything random; depends on this prompt alone.
        samples: number of sampled responses, repetitions included.
        excluded: cosines of the distinct responses that cannot be negatives: an empty one, a copy of the target.
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
    """Select the distinct candidates of a prompt that may be negatives.

    A selector that never uses similarities also has `needs_target: ClassVar[bool] = False`, and may be used for prompts
    without target. One that needs the sampler's log-probabilities also has `needs_log_probs: ClassVar[bool] = True`.

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


@dataclass(frozen=True)
class Contenders:
    """The candidates of a prompt that may be chosen as y+, sorted by text.

    They are distinct, not empty, and not truncated: a policy trained on truncated text would not learn to stop. A copy
    of the target may be among them.

    Attributes:
        scores: scores by the verifier or reward model [n]; None without either.
        consensus: mean cosine to the prompt's other responses [n], in [-1, 1].
    """

    scores: Floats | None
    consensus: Floats


class Chosen(Protocol):
    """Select the chosen response y+ of a prompt, which training makes likelier than the negatives.

    Attributes:
        target: True if the target is chosen.
        candidate: True if a candidate is chosen. With `target`, both are, each in its own group.
        scored: True if the choice needs scores.
    """

    target: ClassVar[bool]
    candidate: ClassVar[bool]
    scored: ClassVar[bool]

    def value(self, contenders: Contenders) -> Floats:
        """Return the value [n] whose maximum is chosen. Ties are broken at random with `Filter.seed`."""
        ...


@dataclass(frozen=True)
class Filter:
    """The settings of the filter, shared by every K of a sweep.

    Attributes:
        selector: selects the candidates that may be negatives.
        max_negatives: ranks drawn per prompt; the upper bound of K.
        on_shortage: what to do with a prompt that keeps fewer than `max_negatives` candidates. "drop_everywhere" drops
            it for every K. "refill" fills the last ranks with the least similar of the rejected candidates, and drops
            the prompt if these do not suffice. "error" raises.
        seed: seed of the random draw.
        reward_model: a `selfcontrast.models.reward.RewardModel` that scores candidates instead of the verifier; None
            uses the verifier, if the data has one.
    """

    selector: Selector
    max_negatives: Samples
    on_shortage: str
    seed: Seed
    reward_model: RewardModel | None = field(metadata=NOT_IN_KEY)  # its scores are an input of the stage

    def __post_init__(self) -> None:
        check_numbers(self, "filter")
        if self.on_shortage not in SHORTAGES:
            raise UserError(f"filter.on_shortage={self.on_shortage} is unknown. Use one of {', '.join(SHORTAGES)}.")

    def check(self, negatives: int, samples: int, verified: bool, log_probs: bool) -> None:
        """Raise `UserError` if no prompt can give enough negatives, or the selector's signal is not available.

        Args:
            verified: whether the data has a verifier.
            log_probs: whether the generator returns log-probabilities.
        """
        if negatives > self.max_negatives:
            raise UserError(
                f"negatives={negatives} exceeds filter.max_negatives={self.max_negatives}. Raise it or lower K."
            )
        bound = samples if self.on_shortage == "refill" else self.selector.max_kept(samples)
        if self.max_negatives > bound:
            raise UserError(
                f"filter.max_negatives={self.max_negatives} is impossible: the filter keeps at most {bound} of "
                f"generator.samples={samples}. Sample more, keep more, or lower filter.max_negatives."
            )
        if self.reward_model is not None:
            self.reward_model.check()
        elif self.selector.scored and not verified:
            raise UserError(
                f"filter.selector={type(self.selector).__name__} needs scores, but the data has no verifier. Add "
                "+reward_model@filter.reward_model=classifier filter.reward_model.path=MODEL, or use another filter."
            )
        if needs_log_probs(self.selector) and not log_probs:
            raise UserError(
                f"filter.selector={type(self.selector).__name__} needs the sampler's log-probabilities, but this "
                "generator has none. Use generator=hf or generator=vllm, or another filter, such as "
                "filter=least_consistent."
            )


@dataclass(frozen=True)
class Draw:
    """The negatives drawn for one prompt, as indices into its `Pool`.

    Attributes:
        kept: candidates kept by the selector.
        ranks: the negatives in rank order; either `max_negatives` of them or none.
        refilled: number of last ranks filled with candidates that the selector rejected.
        taken: candidates that cannot be negatives because of the chosen one; neither kept nor drawn.
    """

    kept: Indices
    ranks: Indices
    refilled: int
    taken: Indices


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt's target and its candidates.

    Attributes:
        id: example id.
        target: text of the target; "" without one.
        target_vector: embedding of length one [d]; None without a target.
        texts: the candidates in sampling order.
        vectors: their embeddings of length one [n, d].
        log_probs: the sampler's, in nats at temperature 1, summed over each response [n]; NaN if unknown.
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
class ChosenCandidate:
    """A prompt's chosen candidate.

    Attributes:
        row: its index among the candidates.
        score: its score; None without a scorer.
        is_target: True if its text equals the target.
    """

    row: int
    score: float | None
    is_target: bool


@dataclass(frozen=True)
class Selection:
    """The negatives and the chosen candidate of one prompt.

    Attributes:
        rows: indices of the pool's candidates among all candidates [n].
        pool: the distinct candidates.
        good: True for a candidate at least as good as the target [n]; None without a scorer, and with a
            reward model for a prompt without target.
        drawn: the drawn negatives; its indices point into `rows`.
        chosen: the chosen candidate, if any.
    """

    rows: Indices
    pool: Pool
    good: NDArray[np.bool_] | None
    drawn: Draw
    chosen: "ChosenCandidate | None" = None

    @property
    def negatives(self) -> Indices:
        """Return indices of the negatives among all candidates, in rank order."""
        return self.rows[self.drawn.ranks]


def choose(
    settings: Filter, sampled: SampledPrompt, score: Score | None = None, chosen: Chosen | None = None
) -> Selection:
    """Build a prompt's pool, draw its negatives, and select the chosen candidate.

    Args:
        score: returns the scores of the candidates at given indices, and the lowest score as good as the target's. It
            is called once.
        chosen: selects y+; None for the target.

    Raises:
        UserError: with on_shortage="error", if a prompt has too few negatives or no candidate to choose; if the
            selector needs log-probabilities and a candidate has none.
    """
    indices = distinct(sampled.target, sampled.texts)
    cosines = _cosines(sampled, indices)
    order = sorted(range(len(indices)), key=lambda i: (np.nan_to_num(cosines[i]), sampled.texts[indices[i]]))
    rows = np.array(indices, dtype=np.intp)[order]
    eligible = contenders(sampled) if chosen is not None and chosen.candidate else []
    known = {sampled.texts[row].strip() for row in rows}
    copies = [row for row in eligible if sampled.texts[row].strip() not in known]
    scores, threshold = score([*rows.tolist(), *copies]) if score else (None, 0.0)
    never = _cosines(sampled, excluded(sampled.target, sampled.texts))
    if needs_log_probs(settings.selector):
        _check_log_probs(settings.selector, sampled, rows)
    seed = seed_of(settings, sampled.id)
    pool_scores = None if scores is None else scores[: len(rows)]
    counts = Counter(text.strip() for text in sampled.texts)
    pool = Pool(
        similarity=cosines[order],
        vectors=sampled.vectors[rows],
        scores=pool_scores,
        consensus=consensus(sampled, rows),
        log_probs=sampled.log_probs[rows],
        tokens=sampled.tokens[rows],
        counts=np.array([counts[sampled.texts[row].strip()] for row in rows], dtype=np.intp),
        seed=seed,
        samples=len(sampled.texts),
        excluded=never,
    )
    good = None if pool_scores is None or np.isnan(threshold) else pool_scores >= threshold
    if chosen is None or not chosen.candidate:
        return Selection(rows, pool, good, draw(settings, sampled.id, pool))
    if not eligible:
        return Selection(rows, pool, good, _without_chosen(settings, sampled.id, pool))
    score_of = None if scores is None else _by_text(sampled, [*rows.tolist(), *copies], scores)
    best = _best(chosen, sampled, eligible, score_of, seed)
    taken = np.array([sampled.texts[row].strip() == sampled.texts[best.row].strip() for row in rows], dtype=bool)
    if chosen.scored and pool_scores is not None and best.score is not None:
        taken |= pool_scores >= best.score - PRECISION  # no worse than the chosen one
    return Selection(rows, pool, good, draw(settings, sampled.id, pool, np.flatnonzero(taken).tolist()), best)


def _cosines(sampled: SampledPrompt, rows: list[int]) -> Floats:
    """Return the cosines of these candidates to the target [n]; NaN without a target."""
    if sampled.target_vector is None:
        return np.full(len(rows), np.nan, dtype=np.float32)
    cosines: Floats = np.clip(sampled.vectors[rows] @ sampled.target_vector, -1, 1)
    return cosines


def contenders(sampled: SampledPrompt) -> list[int]:
    """Return indices of the candidates that may be chosen: the first of each text, sorted by text."""
    first: dict[str, int] = {}
    for row, text in enumerate(sampled.texts):
        if text.strip() and (sampled.ended is None or sampled.ended[row]):
            first.setdefault(text.strip(), row)
    return [first[text] for text in sorted(first)]


def _by_text(sampled: SampledPrompt, rows: Sequence[int], scores: Floats) -> dict[str, float]:
    return {sampled.texts[row].strip(): float(score) for row, score in zip(rows, scores, strict=True)}


def _best(
    chosen: Chosen,
    sampled: SampledPrompt,
    eligible: Sequence[int],
    score_of: Mapping[str, float] | None,
    seed: Sequence[int],
) -> ChosenCandidate:
    """Select the contender with the highest value; ties (within `PRECISION`) are broken by the seed."""
    texts = [sampled.texts[row].strip() for row in eligible]
    scores = None if score_of is None else np.array([score_of[text] for text in texts], dtype=np.float32)
    value = chosen.value(Contenders(scores, consensus(sampled, np.array(eligible, dtype=np.intp))))
    highest = np.flatnonzero(value >= value.max() - PRECISION)
    stream = [*seed, 2]  # independent of the draw (no suffix) and of `selectors.Random` (1)
    i = int(np.random.default_rng(stream).choice(highest))
    score = None if scores is None else float(scores[i])
    return ChosenCandidate(eligible[i], score, texts[i] == sampled.target.strip())


def _without_chosen(settings: Filter, name: str, pool: Pool) -> Draw:
    """Draw no negatives for a prompt without a candidate to choose, or raise if the settings say so."""
    if settings.on_shortage == "error":
        raise UserError(
            f"prompt {name} has no candidate to choose: all are empty or truncated. Sample more or longer responses "
            "(generator.samples, generator.max_new_tokens), or use filter.on_shortage=drop_everywhere."
        )
    kept = settings.selector.select(pool)
    return Draw(kept, kept[:0], 0, kept[:0])


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


def _check_log_probs(selector: Selector, sampled: SampledPrompt, rows: Indices) -> None:
    if unknown := int(np.isnan(sampled.log_probs[rows]).sum()):
        raise UserError(
            f"filter.selector={type(selector).__name__} needs the sampler's log-probability of every candidate, but "
            f"{unknown} of {len(rows)} candidates of prompt {sampled.id} have none. Sample with generator=hf or "
            "generator=vllm, or use another filter, such as filter=least_consistent."
        )


def distinct(target: str, texts: Sequence[str]) -> list[int]:
    """Return indices of the texts that are not empty, not a copy of the target, and not a repetition.

    The first of equal texts is kept with its own tokens and log-probability. Another may have been sampled as other
    tokens, with another log-probability.
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
    """Return indices of the first empty text and the first copy of the target, if they exist."""
    stripped = [text.strip() for text in texts]
    return [stripped.index(text) for text in dict.fromkeys(("", target.strip())) if text in stripped]


def seed_of(settings: Filter, name: str) -> list[int]:
    """Return the seed of a prompt, derived from its example's id."""
    return [settings.seed, *name.encode()]


def draw(settings: Filter, name: str, pool: Pool, chosen: Sequence[int] = ()) -> Draw:
    """Draw the negatives of a prompt.

    Args:
        chosen: candidates that cannot be negatives because of the chosen one.

    Raises:
        UserError: with on_shortage="error", if there are too few.
    """
    taken = np.array(chosen, dtype=np.intp)
    kept = settings.selector.select(pool)
    kept = kept[~np.isin(kept, taken)]
    order = kept if settings.selector.ranked else np.random.default_rng(pool.seed).permutation(kept)
    ranks = order[: settings.max_negatives]
    if (missing := settings.max_negatives - len(ranks)) == 0:
        return Draw(kept, ranks, 0, taken)
    if settings.on_shortage == "refill":
        rest = np.setdiff1d(np.arange(len(pool.similarity)), [*kept, *taken])  # ascending: the least similar first
        if len(rest) >= missing:
            return Draw(kept, np.concatenate([ranks, rest[:missing]]), missing, taken)
    if settings.on_shortage == "error":
        raise UserError(
            f"prompt {name} gives only {len(kept)} of filter.max_negatives={settings.max_negatives} negatives "
            f"({len(pool.similarity)} distinct candidates). Sample more, or use filter.on_shortage=drop_everywhere."
        )
    return Draw(kept, ranks[:0], 0, taken)
