"""Test the cap on the cost of all judgments of a job."""

from pathlib import Path

import pytest

from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.bills import Bills
from selfcontrast.evaluation.judges.budget import OVERHEAD, Account, Budget, Price, token_upper_bound

ONE_PER_TOKEN = Price(prompt=1e6, completion=1e6)


def account(folder: Path, budget: Budget, who: str = "a benchmark", price: Price | None = ONE_PER_TOKEN) -> Account:
    return Account(price, budget, who, Bills(folder, {"judge": "one"}))


def test_budget_stops_before_the_cap_across_accounts(tmp_path: Path) -> None:
    budget = Budget(100 + 2 * OVERHEAD)
    first, second = (account(tmp_path, budget, who) for who in ("mt_bench SFT", "pairwise SFT"))
    budget.count("paid before", 10)
    request = first.reserve("x" * 30, 50)  # 112 and the 10 paid before: 122
    assert request.reserved == 80 + OVERHEAD
    with pytest.raises(UserError, match=r"evaluation\.max_cost=164 .*pairwise SFT: 122 "):
        second.reserve("", 11)
    request.settle(20, 10)  # 30 and the 10 paid before: 40
    assert second.reserve("", 60 + OVERHEAD).reserved == 60 + 2 * OVERHEAD
    with pytest.raises(UserError, match="mt_bench SFT"):
        first.reserve("x", 0)


def test_budget_counts_an_earlier_payment_once(tmp_path: Path) -> None:
    budget = Budget(100 + OVERHEAD)
    for _ in range(3):
        budget.count("a", 60)
    payer = account(tmp_path, budget)
    assert payer.reserve("", 40).reserved == 40 + OVERHEAD
    budget.count("b", 1)
    with pytest.raises(UserError):
        payer.reserve("", 0)


def test_budget_without_price_or_cap_never_stops(tmp_path: Path) -> None:
    assert account(tmp_path, Budget(0), price=None).reserve("x" * 10**6, 10**6).reserved == 0
    assert account(tmp_path, Budget(None)).reserve("", 10**9).reserved == 10**9 + OVERHEAD


def test_bills_unsettled_try_counts_at_its_maximum_in_the_next_run(tmp_path: Path) -> None:
    payer = account(tmp_path, Budget(None))
    payer.reserve("x", 50)
    payer.reserve("x", 50).settle(3, 4)
    payer.reserve("y", 50).settle(0, 0)
    reloaded = Bills(tmp_path, {"judge": "one"})
    assert reloaded.tokens("x") == (1 + OVERHEAD + 3, 54)
    assert reloaded.tokens("y") == reloaded.tokens("z") == (0, 0)
    assert Bills(tmp_path, {"judge": "another"}).tokens("x") == (0, 0)


@pytest.mark.parametrize(
    "last_line", ["", "{", "[]", '{"try": "1", "prompt": "p"}', '{"try": 1, "prompt": 2, "promp', "7"]
)
def test_bills_with_a_truncated_last_line_keep_the_other_lines(last_line: str, tmp_path: Path) -> None:
    account(tmp_path, Budget(None)).reserve("x", 5)
    (file,) = tmp_path.iterdir()
    file.write_text(f"{file.read_text()}{last_line}")
    account(tmp_path, Budget(None)).reserve("x", 6)
    assert Bills(tmp_path, {"judge": "one"}).tokens("x") == (2 * (1 + OVERHEAD), 11)


@pytest.mark.parametrize("prompt", ["", "words in plain English", "数字と漢字", "1234567890", "🙂🙂", "\ud800"])
def test_token_upper_bound_is_at_least_the_number_of_bytes(prompt: str) -> None:
    assert token_upper_bound(prompt) >= len(prompt.encode(errors="replace"))
