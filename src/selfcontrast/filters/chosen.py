"""Choose the response y+ of a prompt: the target, or a candidate by its score or by agreement."""

from dataclasses import dataclass
from typing import ClassVar

from selfcontrast.errors import UserError
from selfcontrast.filters.contenders import Chosen, Contenders
from selfcontrast.filters.pool import Floats
from selfcontrast.filters.select import Filter


@dataclass(frozen=True)
class Target:
    """Choose the target of the data, as the paper does."""

    target: ClassVar[bool] = True
    candidate: ClassVar[bool] = False
    scored: ClassVar[bool] = False

    def value(self, contenders: Contenders) -> Floats:
        raise NotImplementedError("no candidate is chosen")


@dataclass(frozen=True)
class BestOfN:
    """Choose the candidate with the highest score from the data's verifier or `filter.reward_model`.

    Training on this candidate alone is rejection-sampled fine-tuning (RFT, arXiv 2308.01825). With the lowest-scored
    candidate as its negative, the method is best-vs-worst.
    """

    target: ClassVar[bool] = False
    candidate: ClassVar[bool] = True
    scored: ClassVar[bool] = True

    def value(self, contenders: Contenders) -> Floats:
        assert contenders.scores is not None, "`check_chosen` requires a scorer"
        return contenders.scores


@dataclass(frozen=True)
class Consensus:
    """Choose the candidate with the highest mean similarity to the prompt's other responses, repetitions included.

    This follows ScPO (arXiv 2411.04109), which counts equal final answers; mean similarity replaces the count for free
    text. The choice needs neither target nor score.
    """

    target: ClassVar[bool] = False
    candidate: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    def value(self, contenders: Contenders) -> Floats:
        return contenders.consensus


@dataclass(frozen=True)
class TargetAndBest(BestOfN):
    """Choose both the target and the best candidate, each in its own group against the same negatives.

    If the best candidate has the target's text, only the target's group is used.
    """

    target: ClassVar[bool] = True


def check_chosen(chosen: Chosen, settings: Filter, samples: int, verified: bool) -> None:
    """Raise `UserError` if no candidate can be chosen, or too few are left for the negatives.

    Args:
        samples: upper bound on the responses per prompt.
        verified: True if the data has a verifier.
    """
    if not chosen.candidate:
        return
    name = type(chosen).__name__
    if settings.max_negatives > samples - 1:
        raise UserError(
            f"filter.max_negatives={settings.max_negatives} is impossible with chosen={name}: one of generator.samples="
            f"{samples} responses is chosen, which leaves {samples - 1}. Sample more or lower filter.max_negatives."
        )
    if chosen.scored and settings.reward_model is None and not verified:
        raise UserError(
            f"chosen={name} needs scores, but the data has no verifier. Add "
            "+reward_model@filter.reward_model=classifier filter.reward_model.path=MODEL, or use chosen=consensus."
        )
