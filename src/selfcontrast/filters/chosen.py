"""Which response of a prompt is chosen (y+): the target, or a candidate by its score or by agreement."""

from dataclasses import dataclass
from typing import ClassVar

from selfcontrast.errors import UserError
from selfcontrast.filters.select import Chosen, Contenders, Filter, Floats


@dataclass(frozen=True)
class Target:
    """The target of the data: the paper's."""

    target: ClassVar[bool] = True
    candidate: ClassVar[bool] = False
    scored: ClassVar[bool] = False

    def value(self, contenders: Contenders) -> Floats:
        raise NotImplementedError("no candidate is chosen")


@dataclass(frozen=True)
class BestOfN:
    """The candidate with the highest score, by the data's verifier or `filter.reward_model`.

    Trained on alone this is rejection-sampled fine-tuning (RFT, arXiv 2308.01825); against the lowest scores it is
    best against worst.
    """

    target: ClassVar[bool] = False
    candidate: ClassVar[bool] = True
    scored: ClassVar[bool] = True

    def value(self, contenders: Contenders) -> Floats:
        assert contenders.scores is not None, "checked before any compute"
        return contenders.scores


@dataclass(frozen=True)
class Consensus:
    """The candidate with the highest mean similarity to the prompt's other responses, repetitions counted.

    After ScPO (arXiv 2411.04109), which counts equal final answers; similarity is its counterpart for free text. It
    needs no target and no score.
    """

    target: ClassVar[bool] = False
    candidate: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    def value(self, contenders: Contenders) -> Floats:
        return contenders.consensus


@dataclass(frozen=True)
class TargetAndBest(BestOfN):
    """Both the target and the best candidate, each in a group of its own against the same negatives.

    A prompt whose best candidate has the target's text gives the target's group alone.
    """

    target: ClassVar[bool] = True


def check_chosen(chosen: Chosen, settings: Filter, samples: int, verified: bool) -> None:
    """Raise `UserError` where no candidate could be chosen, or none would be left for the negatives.

    Args:
        samples: the most responses of a prompt.
        verified: whether the data has a verifier.
    """
    if not chosen.candidate:
        return
    name = type(chosen).__name__
    if settings.max_negatives > samples - 1:
        raise UserError(
            f"filter.max_negatives={settings.max_negatives} is impossible with chosen={name}: of generator.samples="
            f"{samples} responses one is chosen, and {samples - 1} are left. Sample more, or lower it"
        )
    if chosen.scored and settings.reward_model is None and not verified:
        raise UserError(
            f"chosen={name} needs scores, and this data has no verifier: add "
            "+reward_model@filter.reward_model=classifier filter.reward_model.path=MODEL, or use chosen=consensus"
        )
