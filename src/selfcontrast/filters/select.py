"""Define the settings that select a prompt's negatives, and check them before anything runs."""

from dataclasses import dataclass, field

from selfcontrast.constrained import Samples, Seed, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.filters.pool import Selector, needs_log_probs
from selfcontrast.models.reward import RewardModel
from selfcontrast.store import NOT_IN_KEY

SHORTAGES = ("drop_everywhere", "refill", "error")


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
            verified: True if the data has a verifier.
            log_probs: True if the generator returns log-probabilities.
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
