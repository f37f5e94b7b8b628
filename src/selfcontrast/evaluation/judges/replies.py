"""Run judges that reply in text: render prompts, repeat failed tries, use the ledger and the budget."""

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
from selfcontrast.evaluation.judges.verdicts import VERDICTS, expected_outcome, read_verdict
from selfcontrast.models.truncation import Counts

log = logging.getLogger(__name__)

Finish = Literal["stop", "truncated", "refused", "api_error"]


@dataclass(frozen=True)
class Reply:
    """The reply to a prompt.

    Attributes:
        text: the judge's text, or the reason why there is none.
        weights: if requested, log-probabilities of the letters at the position of a comparison's verdict.
    """

    finish: Finish
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    weights: Mapping[str, float] | None = None


StoreReply = Callable[[int, Reply], None]
"""Store a reply, called with the prompt's index as soon as the reply arrives."""
RequestReplies = Callable[[Sequence[str], int, Account, StoreReply], None]
"""Request a reply to each prompt. Arguments: prompts, number of the try (from 0), paying account, reply store."""


@dataclass(frozen=True)
class ReplySettings:
    """The settings of requests for replies.

    Attributes:
        attempts: maximum tries per judgment. No try follows an ok one.
        max_tokens: bound on a reply's tokens.
        max_characters: bound on the characters of an answer; the middle of a longer one is not shown to the judge.
        price: price of a million tokens; None if free or unknown.
    """

    attempts: Annotated[Count, Field(le=1000)]
    max_tokens: Count
    max_characters: Annotated[Count, Field(ge=100)]
    price: Price | None

    def __post_init__(self) -> None:
        check_numbers(self, "judge")

    def judge(
        self, cases: Sequence[Case], judge: Mapping[str, Any], context: JudgeContext, ask: RequestReplies
    ) -> list[Judgment]:
        """Judge each case. Usable judgments in the ledger are reused."""
        ledger = Ledger(context.judgments, judge)
        prompts: dict[str, tuple[str, Case]] = {}
        keys = []
        for case in cases:
            prompt = judge_prompt(case, self.max_characters)
            keys.append(ledger.key(prompt, case.pairwise))
            prompts[keys[-1]] = (prompt, case)
        account = self.account(judge, context)
        for key, (prompt, _) in prompts.items():
            earlier = _billed(ledger.get(key) or Judgment("api_error", None), account, prompt)
            context.budget.count(key, self.cost([earlier]) or 0.0)
        for attempt in range(self.attempts):
            pending = [key for key in prompts if (last := ledger.get(key)) is None or last.status != "ok"]
            if not pending:
                break
            self._announce([prompts[key][0] for key in pending], len(prompts), attempt)
            ask([prompts[key][0] for key in pending], attempt, account, _store_in(ledger, pending, prompts))
        judgments: list[Judgment] = []
        paid: set[str] = set()
        for key in keys:
            judgment = ledger.get(key) or Judgment("api_error", None, "not asked")
            judgment = _billed(judgment, account, prompts[key][0])
            # Cases with the same prompt share one request, which is paid once.
            judgments.append(replace(judgment, prompt_tokens=0, completion_tokens=0) if key in paid else judgment)
            paid.add(key)
        return judgments

    def unread(self, cases: Sequence[Case]) -> Counts:
        """Return each answer's number of characters, and how many of them the judge does not see, [answers, 2]."""
        lengths = [len(answers[case.turn]) for case in cases for answers in case.answers]
        return np.array([[n, max(0, n - self.max_characters)] for n in lengths], dtype=np.int64).reshape(-1, 2)

    def account(self, judge: Mapping[str, Any], context: JudgeContext) -> Account:
        """Open the account that pays for this judge's requests, with the bills of earlier runs."""
        bills = Bills(context.judgments, judge)
        return Account(self.price, context.budget, context.label, bills)

    def cost(self, judgments: Sequence[Judgment]) -> float | None:
        """Return the cost in the price's currency; None without a price."""
        if self.price is None:
            return None
        return sum(self.price.of(j.prompt_tokens, j.completion_tokens) for j in judgments)

    def _announce(self, prompts: Sequence[str], total: int, attempt: int) -> None:
        prompt_tokens, max_reply_tokens = sum(map(estimated_tokens, prompts)), len(prompts) * self.max_tokens
        price = f", cost at most {self.price.of(prompt_tokens, max_reply_tokens):.2f}" if self.price else ""
        suffix = " again" if attempt else ""
        log.info(
            "judge: requesting %d of %d judgments%s: about %d prompt tokens, at most %d completion tokens%s",
            len(prompts),
            total,
            suffix,
            prompt_tokens,
            max_reply_tokens,
            price,
        )


def check_verdict(verdict: str) -> None:
    """Raise `UserError` for an unknown way of reading verdicts."""
    if verdict not in VERDICTS:
        raise UserError(f"judge.verdict={verdict}: unknown. Use {' or '.join(VERDICTS)}.")


def _billed(judgment: Judgment, account: Account, prompt: str) -> Judgment:
    """Return the judgment with the tokens of all tries that may have been billed, even without an answer."""
    prompt_tokens, completion_tokens = account.bills.tokens(prompt)
    return replace(
        judgment,
        prompt_tokens=max(prompt_tokens, judgment.prompt_tokens),
        completion_tokens=max(completion_tokens, judgment.completion_tokens),
    )


def _store_in(ledger: Ledger, pending: Sequence[str], prompts: Mapping[str, tuple[str, Case]]) -> StoreReply:
    def store(index: int, reply: Reply) -> None:
        if reply.finish == "stop":
            case = prompts[pending[index]][1]
            judgment = read_verdict(reply.text, case.pairwise, case.wording is not None)
            if reply.weights is not None and judgment.status == "ok" and case.pairwise:
                value = expected_outcome(reply.weights)
                failed = Judgment("unparsable", None, reply.text)
                judgment = replace(judgment, value=value) if math.isfinite(value) else failed
        else:  # a verdict in a truncated reply may not be the final one
            judgment = Judgment(reply.finish, None, reply.text)
        prompt_tokens, completion_tokens = reply.prompt_tokens, reply.completion_tokens
        ledger.add(pending[index], replace(judgment, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens))

    return store
