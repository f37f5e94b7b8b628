"""Check that the ledger keeps every paid judgment and never mixes up two of them."""

from pathlib import Path

from selfcontrast.evaluation.judges import Judgment
from selfcontrast.evaluation.judges.ledger import Ledger

JUDGE = {"model": "m"}


def test_ledger_returns_a_stored_judgment(tmp_path: Path) -> None:
    first = Ledger(tmp_path, JUDGE)
    key = first.key("prompt", True)
    assert first.get(key) is None
    first.add(key, Judgment("ok", 0.5, "a\n\u2028 tie", 7, 2))
    assert Ledger(tmp_path, JUDGE).get(key) == Judgment("ok", 0.5, "a\n\u2028 tie", 7, 2)


def test_ledger_sums_tokens_over_tries(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, JUDGE)
    ledger.add("k", Judgment("unparsable", None, "?", 7, 2))
    ledger.add("k", Judgment("ok", 3.0, "[[3]]", 7, 4))
    for each in (ledger, Ledger(tmp_path, JUDGE)):
        assert each.get("k") == Judgment("ok", 3.0, "[[3]]", 14, 6)


def test_ledger_with_a_truncated_line_loses_only_that_judgment(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, JUDGE)
    ledger.add("a", Judgment("ok", 3.0))
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text() + '\n{"key": "b", "status": "o')
    ledger = Ledger(tmp_path, JUDGE)
    assert ledger.get("b") is None
    ledger.add("c", Judgment("ok", 4.0))
    assert [bool(Ledger(tmp_path, JUDGE).get(key)) for key in "abc"] == [True, False, True]


def test_ledger_key_depends_on_judge_and_prompt_and_pairwise(tmp_path: Path) -> None:
    ledger, other = Ledger(tmp_path, JUDGE), Ledger(tmp_path, {"model": "n"})
    keys = [ledger.key("p", True), ledger.key("p", False), ledger.key("q", True), other.key("p", True)]
    assert len(set(keys)) == 4
    ledger.add(keys[0], Judgment("ok", 1.0))
    assert Ledger(tmp_path, {"model": "n"}).get(keys[0]) is None


def test_ledger_failure_after_an_answer_keeps_the_answer(tmp_path: Path) -> None:
    """Two jobs may request the same judgment at once, and the second one may fail."""
    ledger = Ledger(tmp_path, JUDGE)
    ledger.add("k", Judgment("ok", 3.0, "[[3]]", 7, 4))
    ledger.add("k", Judgment("api_error", None, "busy", 7, 0))
    for each in (ledger, Ledger(tmp_path, JUDGE)):
        assert each.get("k") == Judgment("ok", 3.0, "[[3]]", 14, 4)
