"""Track the cost of judgments, and enforce the cap that all benchmarks of a job share."""

from dataclasses import dataclass

from selfcontrast.constrained import NonNegative, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.bills import Bills

CHARACTERS_PER_TOKEN = 3  # a low number, so that an estimate is rather too high; the actual number replaces it
OVERHEAD = 32  # tokens that a chat template may put around a prompt


@dataclass(frozen=True)
class Price:
    """The price of a million tokens, in any currency."""

    prompt: NonNegative
    completion: NonNegative

    def __post_init__(self) -> None:
        check_numbers(self, "price")

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Budget:
    """The cost of a job's judgments in all benchmarks, and the cap of that cost; `max_cost` None means no cap."""

    def __init__(self, max_cost: float | None) -> None:
        self._max_cost = max_cost
        self._spent = 0.0
        self._pending = 0.0  # the part of `_spent` that is only reserved; the actual cost may be lower
        self._counted: set[str] = set()

    def count(self, key: str, cost: float) -> None:
        """Add the cost that an earlier run paid for a judgment. Each key counts once."""
        if key not in self._counted:
            self._counted.add(key)
            self._spent += cost

    def reserve(self, max_cost: float, label: str) -> None:
        """Reserve the maximum cost of a request; raise `UserError` if the cap does not allow it."""
        if self._max_cost is not None and self._spent + max_cost > self._max_cost:
            raise UserError(
                f"evaluation.max_cost={self._max_cost:g} is reached by {label}: {self._spent:.4g} is spent or "
                "reserved. Judgments are kept. Raise the maximum and run the same command again, or lower this "
                "benchmark's limit."
            )
        self._spent += max_cost
        self._pending += max_cost

    def settle(self, reserved: float, cost: float) -> None:
        """Replace a reserved amount by the actual cost."""
        self._spent += cost - reserved
        self._pending -= reserved

    @property
    def pending(self) -> bool:
        """True while a request is pending. Its end may free part of the budget."""
        return self._pending > 1e-12


@dataclass(frozen=True)
class Account:
    """The account of a judge that works for one benchmark and spends from the job's budget.

    A request is sent only if the cap allows the cost of its longest possible answer. This maximum cost is written to
    disk first, so it counts even if the request or this process is killed.
    """

    price: Price | None
    budget: Budget
    label: str
    bills: Bills

    def reserve(self, prompt: str, max_tokens: int) -> "Try":
        """Reserve the maximum cost of one try; raise `UserError` if it exceeds the cap."""
        if self.price is None:
            return Try(self, 0.0, None)
        tokens = token_upper_bound(prompt)
        reserved = self.price.of(tokens, max_tokens)
        self.budget.reserve(reserved, self.label)
        return Try(self, reserved, self.bills.begin(prompt, tokens, max_tokens))


@dataclass
class Try:
    """One try of a request."""

    account: Account
    reserved: float
    number: str | None
    open: bool = True

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace the reserved amount by the actual tokens; both are 0 if the request was rejected or never arrived."""
        if self.open and self.account.price and self.number:
            self.account.bills.settle(self.number, prompt_tokens, completion_tokens)
            self.account.budget.settle(self.reserved, self.account.price.of(prompt_tokens, completion_tokens))
        self.open = False

    def end(self) -> None:
        """End the try. Unless it was settled, it counts at its maximum cost, since its actual cost is unknown."""
        if self.open:
            self.account.budget.settle(self.reserved, self.reserved)
        self.open = False


def estimated_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def token_upper_bound(prompt: str) -> int:
    """Bound a prompt's tokens from above: no tokenizer makes more tokens than the text has bytes."""
    return len(prompt.encode(errors="replace")) + OVERHEAD
