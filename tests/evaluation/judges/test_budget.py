"""One cap for all that a job's judgments cost."""

import pytest

from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.budget import Account, Budget, Price

ONE_PER_TOKEN = Price(prompt=1e6, completion=1e6)


def test_a_budget_stops_before_it_is_exceeded_whoever_spends() -> None:
    budget = Budget(100)
    one, other = (Account(ONE_PER_TOKEN, budget, who) for who in ("mt_bench SFT", "pairwise SFT"))
    budget.count("paid before", 10)
    reserved = one.reserve("x" * 90, 50)  # 30 and 50: 90 in all
    assert reserved == 80
    with pytest.raises(UserError, match=r"evaluation\.cap=100 is reached by pairwise SFT: 90 "):
        other.reserve("", 11)
    one.settle(reserved, 20, 10)  # 40 in all
    assert other.reserve("", 60) == 60
    with pytest.raises(UserError, match="reached by mt_bench SFT"):
        one.reserve("x", 0)


def test_what_was_paid_before_counts_once() -> None:
    budget = Budget(100)
    for _ in range(3):
        budget.count("a", 60)
    account = Account(ONE_PER_TOKEN, budget, "a benchmark")
    assert account.reserve("", 40) == 40
    budget.count("b", 1)
    with pytest.raises(UserError):
        account.reserve("", 0)


def test_without_a_price_or_a_cap_nothing_stops() -> None:
    assert Account(None, Budget(0), "a benchmark").reserve("x" * 10**6, 10**6) == 0
    assert Account(ONE_PER_TOKEN, Budget(None), "a benchmark").reserve("", 10**9) == 10**9
