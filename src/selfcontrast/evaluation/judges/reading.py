"""What judges that reply in words have in common: prompts, tries, the ledger, the budget."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from selfcontrast.constrained import Count, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.bills import Bills
from selfcontrast.evaluation.judges.budget import Account, Price, estimated_tokens
from selfcontrast.evaluation.judges.judgment import Case, JudgeContext, Judgment
from selfcontrast.evaluation.judges.ledger import Ledger
from selfcontrast.evaluation.judges.prompts import judge_prompt
from selfcontrast.evaluation.judges.verdicts import VERDICTS, read_verdict, weighed
from selfcontrast.models.truncation import Counts

log = logging.getLogger(__name__)

Finish = Literal["stop", "truncated", "refused", "api_error"]


@dataclass(frozen=True)
class Reply:
    """What came back for a prompt.

    Attributes:
        text: the judge's, or the reason why there is none.
        weights: where asked for, the letters' log-probabilities at the place of a comparison's verdict.
    """

    finish: Finish
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    weights: Mapping[str, float] | None = None


Done = Callable[[int, Reply], None]
"""To be called with each prompt's place and its reply, as soon as there is one."""
Ask = Callable[[Sequence[str], int, Account, Done], None]
"""Asks for a reply to each prompt, in the try of this number (from 0), and pays from the account."""


@dataclass(frozen=True)
class Reading:
    """How replies are asked for.

    Attributes:
        attempts: tries of each judgment, until one is ok.
        max_tokens: of a reply.
        max_characters: of an answer, of which the judge does not see the middle beyond that.
        price: of a million tokens; None where it costs nothing, or nobody knows.
    """

    attempts: Annotated[Count, Field(le=1000)]
    max_tokens: Count
    max_characters: Annotated[Count, Field(ge=100)]
    price: Price | None

    def __post_init__(self) -> None:
        check_numbers(self, "judge")

    def judge(
        self, cases: Sequence[Case], judge: Mapping[str, Any], surroundings: JudgeContext, ask: Ask
    ) -> list[Judgment]:
        """A judgment of each case; what is in the ledger already is not asked for again."""
        ledger = Ledger(surroundings.judgments, judge)
        prompts: dict[str, tuple[str, Case]] = {}
        keys = []
        for case in cases:
            prompt = judge_prompt(case, self.max_characters)
            keys.append(ledger.key(prompt, case.pairwise))
            prompts[keys[-1]] = (prompt, case)
        account = self.account(judge, surroundings)
        for key, (prompt, _) in prompts.items():
            before = _billed(ledger.get(key) or Judgment("api_error", None), account, prompt)
            surroundings.budget.count(key, self.cost([before]) or 0.0)
        for attempt in range(self.attempts):
            pending = [key for key in prompts if (last := ledger.get(key)) is None or last.status != "ok"]
            if not pending:
                break
            self._announce([prompts[key][0] for key in pending], len(prompts), attempt)
            ask([prompts[key][0] for key in pending], attempt, account, _keeper(ledger, pending, prompts))
        found: list[Judgment] = []
        paid: set[str] = set()
        for key in keys:
            judgment = ledger.get(key) or Judgment("api_error", None, "not asked")
            judgment = _billed(judgment, account, prompts[key][0])
            # What several cases share was asked for, and paid, once.
            found.append(replace(judgment, prompt_tokens=0, completion_tokens=0) if key in paid else judgment)
            paid.add(key)
        return found

    def unread(self, cases: Sequence[Case]) -> Counts:
        """Characters of every answer that is shown, and those in its middle that the judge does not see."""
        lengths = [len(own[case.turn]) for case in cases for own in case.answers]
        return np.array([[n, max(0, n - self.max_characters)] for n in lengths], dtype=np.int64).reshape(-1, 2)

    def account(self, judge: Mapping[str, Any], surroundings: JudgeContext) -> Account:
        """What requests to this judge are paid from, with the bills of earlier runs."""
        bills = Bills(surroundings.judgments, judge)
        return Account(self.price, surroundings.budget, surroundings.who, bills)

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        """In the price's currency; None without a price."""
        if self.price is None:
            return None
        return sum(self.price.of(j.prompt_tokens, j.completion_tokens) for j in judgments)

    def _announce(self, prompts: Sequence[str], of: int, attempt: int) -> None:
        tokens, longest = sum(map(estimated_tokens, prompts)), len(prompts) * self.max_tokens
        price = f", at most {self.price.of(tokens, longest):.2f} in money" if self.price else ""
        again = " once more" if attempt else ""
        log.info(
            "judge: %d of %d judgments to ask for%s: about %d tokens to read, at most %d to write%s",
            len(prompts),
            of,
            again,
            tokens,
            longest,
            price,
        )


def check_verdict(verdict: str) -> None:
    """Raises `UserError` for a way of reading verdicts that there is not."""
    if verdict not in VERDICTS:
        raise UserError(f"judge.verdict={verdict}: one of {', '.join(VERDICTS)}")


def _billed(judgment: Judgment, account: Account, prompt: str) -> Judgment:
    """The judgment with the tokens of all tries that may have been billed, and not of those alone that it has."""
    read, written = account.bills.tokens(prompt)
    read, written = max(read, judgment.prompt_tokens), max(written, judgment.completion_tokens)
    return replace(judgment, prompt_tokens=read, completion_tokens=written)


def _keeper(ledger: Ledger, pending: Sequence[str], prompts: Mapping[str, tuple[str, Case]]) -> Done:
    def done(at: int, reply: Reply) -> None:
        if reply.finish == "stop":
            case = prompts[pending[at]][1]
            found = read_verdict(reply.text, case.pairwise, case.wording is not None)
            if reply.weights is not None and found.status == "ok" and case.pairwise:
                value = weighed(reply.weights)
                found = (
                    replace(found, value=value) if math.isfinite(value) else Judgment("unparsable", None, reply.text)
                )
        else:  # what a cut reply holds so far may not be its verdict
            found = Judgment(reply.finish, None, reply.text)
        prompt_tokens, completion_tokens = reply.prompt_tokens, reply.completion_tokens
        ledger.add(pending[at], replace(found, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens))

    return done
