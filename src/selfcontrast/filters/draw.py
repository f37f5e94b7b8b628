"""Select and rank the negatives of one prompt.

First, empty candidates, copies of the target and repetitions are removed. Then a selector keeps some of the distinct
candidates. If the selector is not `ranked`, their order is drawn at random, with a seed. A run with K negatives takes
the first K ranks, so its negatives are a subset of those of any larger K. Every K uses the same prompts, because a
prompt that cannot fill all `max_negatives` ranks is dropped for every K.

If a candidate is chosen as y+ (instead of the target, or in addition to it), neither this candidate nor a response with
the same text can be a negative. If it was chosen by its score, candidates with an equal or higher score are excluded
too, because they are no worse. The selector itself sees all distinct candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfcontrast.errors import UserError
from selfcontrast.filters.contenders import PRECISION, Chosen, ChosenCandidate, choose_best, contenders
from selfcontrast.filters.pool import (
    Floats,
    Indices,
    Pool,
    SampledPrompt,
    Selector,
    build_pool,
    needs_log_probs,
    sort_distinct,
)
from selfcontrast.filters.select import Filter

Score = Callable[[list[int]], tuple[Floats, float]]


@dataclass(frozen=True)
class Draw:
    """The negatives drawn for one prompt, as indices into its `Pool`.

    Attributes:
        kept: candidates kept by the selector.
        ranks: the negatives in rank order; either `max_negatives` of them or none.
        refilled: how many of the last ranks hold candidates that the selector rejected.
        taken: candidates that the choice of y+ excludes; they are in neither `kept` nor `ranks`.
    """

    kept: Indices
    ranks: Indices
    refilled: int
    taken: Indices


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
    chosen: ChosenCandidate | None = None

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
    rows, similarity = sort_distinct(sampled)
    eligible = contenders(sampled) if chosen is not None and chosen.candidate else []
    pool_texts = {sampled.texts[row].strip() for row in rows}
    copies = [row for row in eligible if sampled.texts[row].strip() not in pool_texts]
    scores, threshold = score([*rows.tolist(), *copies]) if score else (None, 0.0)
    if needs_log_probs(settings.selector):
        _check_log_probs(settings.selector, sampled, rows)
    seed = seed_of(settings, sampled.id)
    pool_scores = None if scores is None else scores[: len(rows)]
    pool = build_pool(sampled, rows, similarity, pool_scores, seed)
    good = None if pool_scores is None or np.isnan(threshold) else pool_scores >= threshold
    if chosen is None or not chosen.candidate:
        return Selection(rows, pool, good, draw(settings, sampled.id, pool))
    if not eligible:
        return Selection(rows, pool, good, _draw_nothing(settings, sampled.id, pool))
    score_of = None if scores is None else _by_text(sampled, [*rows.tolist(), *copies], scores)
    best = choose_best(chosen, sampled, eligible, score_of, seed)
    taken = np.array([sampled.texts[row].strip() == sampled.texts[best.row].strip() for row in rows], dtype=bool)
    if chosen.scored and pool_scores is not None and best.score is not None:
        taken |= pool_scores >= best.score - PRECISION  # these are no worse than the chosen candidate
    return Selection(rows, pool, good, draw(settings, sampled.id, pool, np.flatnonzero(taken).tolist()), best)


def draw(settings: Filter, name: str, pool: Pool, chosen: Sequence[int] = ()) -> Draw:
    """Draw the negatives of a prompt.

    Args:
        chosen: candidates that the choice of y+ excludes.

    Raises:
        UserError: with on_shortage="error", if there are too few negatives.
    """
    taken = np.array(chosen, dtype=np.intp)
    kept = settings.selector.select(pool)
    kept = kept[~np.isin(kept, taken)]
    order = kept if settings.selector.ranked else np.random.default_rng(pool.seed).permutation(kept)
    ranks = order[: settings.max_negatives]
    if (missing := settings.max_negatives - len(ranks)) == 0:
        return Draw(kept, ranks, 0, taken)
    if settings.on_shortage == "refill":
        rejected = np.setdiff1d(np.arange(len(pool.similarity)), [*kept, *taken])  # the least similar first
        if len(rejected) >= missing:
            return Draw(kept, np.concatenate([ranks, rejected[:missing]]), missing, taken)
    if settings.on_shortage == "error":
        raise UserError(
            f"prompt {name} gives only {len(kept)} of filter.max_negatives={settings.max_negatives} negatives "
            f"({len(pool.similarity)} distinct candidates). Sample more, or use filter.on_shortage=drop_everywhere."
        )
    return Draw(kept, ranks[:0], 0, taken)


def seed_of(settings: Filter, name: str) -> list[int]:
    """Return the seed of a prompt, derived from its example's id."""
    return [settings.seed, *name.encode()]


def _draw_nothing(settings: Filter, name: str, pool: Pool) -> Draw:
    """Draw no negatives for a prompt without a candidate to choose, or raise if the settings say so."""
    if settings.on_shortage == "error":
        raise UserError(
            f"prompt {name} has no candidate to choose: all are empty or truncated. Sample more or longer responses "
            "(generator.samples, generator.max_new_tokens), or use filter.on_shortage=drop_everywhere."
        )
    kept = settings.selector.select(pool)
    return Draw(kept, kept[:0], 0, kept[:0])


def _by_text(sampled: SampledPrompt, rows: Sequence[int], scores: Floats) -> dict[str, float]:
    return {sampled.texts[row].strip(): float(score) for row, score in zip(rows, scores, strict=True)}


def _check_log_probs(selector: Selector, sampled: SampledPrompt, rows: Indices) -> None:
    if unknown := int(np.isnan(sampled.log_probs[rows]).sum()):
        raise UserError(
            f"filter.selector={type(selector).__name__} needs the sampler's log-probability of every candidate, but "
            f"{unknown} of {len(rows)} candidates of prompt {sampled.id} have none. Sample with generator=hf or "
            "generator=vllm, or use another filter, such as filter=least_consistent."
        )
