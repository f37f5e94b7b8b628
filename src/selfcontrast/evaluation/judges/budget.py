"""What judgments cost, and the cap that all benchmarks of a job share."""

from dataclasses import dataclass

from selfcontrast.errors import UserError

CHARACTERS_PER_TOKEN = 3  # few, so that an estimate is rather too high; what was really used replaces it


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in any currency."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Budget:
    """What all judgments of a job may cost, whichever benchmark asks for them; None for whatever they cost."""

    def __init__(self, cap: float | None) -> None:
        self._cap = cap
        self._spent = 0.0
        self._counted: set[str] = set()

    def count(self, key: str, cost: float) -> None:
        """Adds what was paid before, by a run that was killed or for a benchmark that is recalled; each key once."""
        if key not in self._counted:
            self._counted.add(key)
            self._spent += cost

    def reserve(self, most: float, who: str) -> None:
        """Sets aside what a request may cost at most. Raises `UserError` where that is too much."""
        if self._cap is not None and self._spent + most > self._cap:
            raise UserError(
                f"evaluation.cap={self._cap:g} is reached by {who}: {self._spent:.4g} is spent or under way; what is "
                "judged is kept: raise the cap and run the same command again, or lower that benchmark's limit"
            )
        self._spent += most

    def settle(self, reserved: float, cost: float) -> None:
        """Replaces what was set aside by what was used."""
        self._spent += cost - reserved


@dataclass(frozen=True)
class Account:
    """A judge at work for a benchmark, spending from the job's budget.

    A request is only made where even its longest answer stays within the cap.
    """

    price: Price | None
    budget: Budget
    who: str

    def reserve(self, prompt: str, max_tokens: int) -> float:
        """What is set aside for a request. Raises `UserError` where that is too much."""
        if self.price is None:
            return 0.0
        most = self.price.of(estimated_tokens(prompt), max_tokens)
        self.budget.reserve(most, self.who)
        return most

    def settle(self, reserved: float, prompt_tokens: int, completion_tokens: int) -> None:
        if self.price:
            self.budget.settle(reserved, self.price.of(prompt_tokens, completion_tokens))


def estimated_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)
