"""The one record that every data source gives and every stage reads."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypedDict

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Message(TypedDict):
    """One turn of a dialogue, in the form that chat templates take."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Example:
    """A prompt with its target.

    Attributes:
        id: unique within its data set, and stable: the same content has the same id on every machine.
        prompt: the dialogue so far; its last message is the user's.
        target: the supervised response (y+); "" where there is none.
        category: what results are broken down by.
        reference: what the built-in verifier needs to grade a response, as JSON; its owner alone reads it.
        rejected: a dispreferred response that came with the data; generator=pairs and a judge's calibration use it.
        more_rejected: further ones, each of them another text; generator=pairs uses all.
        turns: the user's messages in order where the dialogue is to be *played* in an evaluation, each
            answered by the model itself; empty where `prompt` is answered as it stands.
        answer: what a verifier compares a response with, such as the number that a problem comes to.
        has_target: False for a row without an answer, which only some choices of y+ and some filters can use.
    """

    id: str
    prompt: list[Message]
    target: str
    category: str = ""
    reference: str = ""
    rejected: str = ""
    turns: list[str] = field(default_factory=list)
    more_rejected: list[str] = field(default_factory=list)
    answer: str = ""
    has_target: bool = True

    @property
    def every_rejected(self) -> list[str]:
        return [self.rejected, *self.more_rejected] if self.rejected else []

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Verifier(Protocol):
    """An exact grader of responses: a pure function of the example and the text."""

    def check(self, example: Example) -> None:
        """Raises `UserError`, without naming the example, where it lacks what is needed to grade its responses."""
        ...

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        """How right `response` is as the answer to a played turn (-1: the last), in [0, 1]."""
        ...


class Source(Protocol):
    """A data set. Gives Examples and nothing else."""

    def load(self) -> dict[Split, list[Example]]:
        """All three splits. Raises `UserError` that names file and line for a row that is unusable."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Settings and, for files, the hash of their content: what decides `load()`'s result."""
        ...
