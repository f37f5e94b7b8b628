"""Define the record that every data source returns, and the interfaces of data sources and verifiers."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypedDict

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Message(TypedDict):
    """One message of a dialogue, in the form that chat templates take."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Example:
    """A prompt with its target.

    Attributes:
        id: unique within its data set, and stable: the same content has the same id on every machine.
        prompt: the dialogue so far; its last message is the user's.
        target: the supervised response (y+); "" without one.
        category: label of a group of examples; results are also reported per category.
        reference: specification of a correct response, as JSON; only the built-in data and its verifier read it.
        rejected: a dispreferred response from the data. generator=pairs and a judge's calibration use it.
        more_rejected: further rejected responses, each a different text; generator=pairs uses all.
        turns: the user's messages in order, if an evaluation *plays* the dialogue and the model answers each of them;
            empty if the model answers `prompt` as it is.
        answer: the value that a verifier compares a response with, such as the result of a math problem.
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
    def all_rejected(self) -> list[str]:
        return [self.rejected, *self.more_rejected] if self.rejected else []

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Verifier(Protocol):
    """An exact grader of responses: a pure function of the example and the text."""

    def check(self, example: Example) -> None:
        """Raise `UserError` if responses to the example cannot be graded. The caller adds the example's id."""
        ...

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        """Grade `response` as the answer to a played turn (-1: the last). Return a score in [0, 1]."""
        ...


class Source(Protocol):
    """A data set."""

    def load(self) -> dict[Split, list[Example]]:
        """Return all three splits. Raise `UserError` with file and line for an unusable row."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the result of `load()`: the settings and, for files, the hash of their content."""
        ...
