"""What is paid for is kept; what is kept is never taken for something else."""

from pathlib import Path

from selfcontrast.evaluation.judges import Judgment
from selfcontrast.evaluation.judges.ledger import Ledger

JUDGE = {"model": "m"}


def test_a_judgment_is_found_again(tmp_path: Path) -> None:
    first = Ledger(tmp_path, JUDGE)
    key = first.key("prompt", True)
    assert first.get(key) is None
    first.add(key, Judgment("ok", 0.5, "a\n\u2028 tie", 7, 2))
    assert Ledger(tmp_path, JUDGE).get(key) == Judgment("ok", 0.5, "a\n\u2028 tie", 7, 2)


def test_tokens_of_all_tries_count(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, JUDGE)
    ledger.add("k", Judgment("unparsable", None, "?", 7, 2))
    ledger.add("k", Judgment("ok", 3.0, "[[3]]", 7, 4))
    for one in (ledger, Ledger(tmp_path, JUDGE)):
        assert one.get("k") == Judgment("ok", 3.0, "[[3]]", 14, 6)


def test_a_line_cut_by_a_kill_costs_that_judgment_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, JUDGE)
    ledger.add("a", Judgment("ok", 3.0))
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text() + '\n{"key": "b", "status": "o')
    ledger = Ledger(tmp_path, JUDGE)
    assert ledger.get("b") is None
    ledger.add("c", Judgment("ok", 4.0))
    assert [bool(Ledger(tmp_path, JUDGE).get(key)) for key in "abc"] == [True, False, True]


def test_everything_that_decides_a_judgment_is_in_its_key(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path, JUDGE), Ledger(tmp_path, {"model": "n"})
    keys = [one.key("p", True), one.key("p", False), one.key("q", True), other.key("p", True)]
    assert len(set(keys)) == 4
    one.add(keys[0], Judgment("ok", 1.0))
    assert Ledger(tmp_path, {"model": "n"}).get(keys[0]) is None


def test_a_failure_after_an_answer_hides_nothing(tmp_path: Path) -> None:
    """Two jobs may ask for one judgment at once."""
    ledger = Ledger(tmp_path, JUDGE)
    ledger.add("k", Judgment("ok", 3.0, "[[3]]", 7, 4))
    ledger.add("k", Judgment("api_error", None, "busy", 7, 0))
    for one in (ledger, Ledger(tmp_path, JUDGE)):
        assert one.get("k") == Judgment("ok", 3.0, "[[3]]", 14, 4)
