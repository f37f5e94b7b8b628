"""What judgments cost, and the cap that all benchmarks of a job share."""

from dataclasses import dataclass

from selfcontrast.constrained import NonNegative, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.bills import Bills

CHARACTERS_PER_TOKEN = 3  # few, so that an estimate is rather too high; what was really used replaces it
OVERHEAD = 32  # tokens that a chat template may put around a prompt


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in any currency."""

    prompt: NonNegative
    completion: NonNegative

    def __post_init__(self) -> None:
        check_numbers(self, "price")

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Budget:
    """What all judgments of a job may cost, whichever benchmark asks for them; None for whatever they cost."""

    def __init__(self, max_cost: float | None) -> None:
        self._max_cost = max_cost
        self._spent = 0.0
        self._under_way = 0.0  # of it, what may still turn out to be less
        self._counted: set[str] = set()

    def count(self, key: str, cost: float) -> None:
        """Adds what was paid before, by a run that was killed or for a benchmark that is recalled; each key once."""
        if key not in self._counted:
            self._counted.add(key)
            self._spent += cost

    def reserve(self, most: float, who: str) -> None:
        """Sets aside what a request may cost at most. Raises `UserError` where that is too much."""
        if self._max_cost is not None and self._spent + most > self._max_cost:
            raise UserError(
                f"evaluation.max_cost={self._max_cost:g} is reached by {who}: {self._spent:.4g} is spent or under way; "
                "what is judged is kept: raise the cap and run the same command again, or lower that benchmark's limit"
            )
        self._spent += most
        self._under_way += most

    def settle(self, reserved: float, cost: float) -> None:
        """Replaces what was set aside by what was used."""
        self._spent += cost - reserved
        self._under_way -= reserved

    @property
    def under_way(self) -> bool:
        """Whether a request is under way, after which there may be more to spend."""
        return self._under_way > 1e-12


@dataclass(frozen=True)
class Account:
    """A judge at work for a benchmark, spending from the job's budget.

    A request is only made where even its longest answer stays within the cap, and after that is on the disk: whatever
    becomes of the request, or of this process, it counts.
    """

    price: Price | None
    budget: Budget
    who: str
    bills: Bills

    def reserve(self, prompt: str, max_tokens: int) -> "Try":
        """Set aside what one try of a request may cost at most. Raises `UserError` where that is too much."""
        if self.price is None:
            return Try(self, 0.0, None)
        tokens = most_tokens(prompt)
        reserved = self.price.of(tokens, max_tokens)
        self.budget.reserve(reserved, self.who)
        return Try(self, reserved, self.bills.begin(prompt, tokens, max_tokens))


@dataclass
class Try:
    """One try of a request."""

    account: Account
    reserved: float
    number: str | None
    open: bool = True

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace what was set aside by what was used: nothing, where a request was refused or has not arrived."""
        if self.open and self.account.price and self.number:
            self.account.bills.settle(self.number, prompt_tokens, completion_tokens)
            self.account.budget.settle(self.reserved, self.account.price.of(prompt_tokens, completion_tokens))
        self.open = False

    def end(self) -> None:
        """Let a try that was not settled count at the most that it may cost: nobody says what it did."""
        if self.open:
            self.account.budget.settle(self.reserved, self.reserved)
        self.open = False


def estimated_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def most_tokens(prompt: str) -> int:
    """Bound the tokens of a prompt: no tokenizer makes more of a text than it has bytes."""
    return len(prompt.encode(errors="replace")) + OVERHEAD
