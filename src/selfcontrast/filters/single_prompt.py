"""Choose the negatives of one prompt from texts alone, as the filter stage does for all prompts."""

from collections.abc import Sequence

import numpy as np

from selfcontrast.errors import UserError
from selfcontrast.filters.draw import choose
from selfcontrast.filters.encode import Encode, unit
from selfcontrast.filters.pool import SampledPrompt, Selector, needs_log_probs
from selfcontrast.filters.select import Filter


def choose_negatives(
    target: str,
    candidates: Sequence[str],
    *,
    encoder: Encode,
    selector: Selector,
    k: int,
    seed: int = 0,
    name: str = "",
) -> list[int]:
    """Return indices of k negatives in rank order. A smaller k returns a prefix of them.

    The target is the chosen response, as with `chosen=target`. Vectors are rounded as the store rounds them, so a job
    with this selector and `filter.seed` chooses the same negatives for the example `name`.

    Args:
        encoder: returns vectors [n, d] of n texts: an open encoder of `selfcontrast.filters.encode`, or the `encode` of
            a sentence-transformers model.
        selector: selects the possible negatives, such as `selfcontrast.filters.selectors.LeastSimilar`.
        seed: seed of the random draw, together with `name`.

    Raises:
        UserError: if the selector keeps fewer than k, or needs scores or log-probabilities.
    """
    if selector.scored:
        raise UserError(f"selector={type(selector).__name__} needs scores. Run it as a job, with a verifier.")
    if needs_log_probs(selector):
        raise UserError(f"selector={type(selector).__name__} needs the sampler's log-probabilities. Run it as a job.")
    vectors = unit(unit(np.asarray(encoder([target, *candidates]))).astype(np.float16).astype(np.float32))
    settings = Filter(selector, k, "error", seed, None)
    log_probs, tokens = np.full(len(candidates), np.nan), np.zeros(len(candidates), dtype=np.intp)
    sampled = SampledPrompt(name, target, vectors[0], candidates, vectors[1:], log_probs, tokens)
    return [int(row) for row in choose(settings, sampled).negatives]
