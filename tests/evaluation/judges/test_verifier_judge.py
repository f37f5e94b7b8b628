"""The data's verifier as a judge."""

from pathlib import Path

import pytest

from judging import Lengths, around, pair, question, single
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.judges.verifier import VerifierJudge


def test_the_verifiers_score_is_a_grade_and_a_preference() -> None:
    cases = [single("x" * 10), single(""), single("x" * 5), pair("xx", "x"), pair("x", "xx"), pair("x", "y")]
    with VerifierJudge().open(around(Path("none"), Lengths())) as judging:
        assert [j.value for j in judging(cases)] == [10, 1, 5.5, 1, 0, 0.5]


def test_a_played_turn_is_graded_as_that_turn() -> None:
    class Turns:
        def score(self, example: object, response: str, turn: int = -1) -> float:
            return turn / 2

    two = question("q", "first", "second")
    cases = [Case(two, 0, (("a",),)), Case(two, 1, (("a", "b"),))]
    with VerifierJudge().open(around(Path("none"), Turns())) as judging:
        assert [j.value for j in judging(cases)] == [1, 5.5]


def test_data_without_a_verifier() -> None:
    with pytest.raises(UserError, match="no verifier"):
        VerifierJudge().check(None)
