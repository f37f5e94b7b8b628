"""The choice of negatives for one prompt, from texts alone: what the stage filter does for all of them."""

from collections.abc import Sequence

import numpy as np

from selfcontrast.errors import UserError
from selfcontrast.filters.encode import Encode, unit
from selfcontrast.filters.select import Filter, Sampled, Selector, choose, needs_log_probs


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
    """Indices of the k candidates that become negatives, in rank order: those for a smaller k are the first of them.

    The target is the chosen response, as with `chosen=target`.

    Vectors are rounded as the store rounds them. So a job with this selector chooses the same for the example `name`
    with `filter.seed`.

    Args:
        encoder: vectors [n, d] of n texts: an encoder of `selfcontrast.filters.encode` once it is open, or the `encode`
            of a sentence-transformers model.
        selector: which candidates may be negatives, such as `selfcontrast.filters.selectors.LeastSimilar`.
        seed: with `name`, of the draw from those that the selector keeps.

    Raises:
        UserError: where the selector leaves fewer than k, or needs scores or log-probabilities.
    """
    if selector.scored:
        raise UserError(f"selector={type(selector).__name__} needs scores: run it as a job, with a verifier")
    if needs_log_probs(selector):
        raise UserError(f"selector={type(selector).__name__} needs the sampler's log-probabilities: run it as a job")
    vectors = unit(unit(np.asarray(encoder([target, *candidates]))).astype(np.float16).astype(np.float32))
    settings = Filter(selector, k, "error", seed, None)
    unknown, none = np.full(len(candidates), np.nan), np.zeros(len(candidates), dtype=np.intp)
    found = choose(settings, Sampled(name, target, vectors[0], candidates, vectors[1:], unknown, none))
    return [int(row) for row in found.negatives]
