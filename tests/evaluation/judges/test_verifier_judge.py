"""Test the data's verifier as a judge."""

from pathlib import Path

import pytest

from judge_cases import LengthVerifier, judge_context, pair, question, single
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges import Case
from selfcontrast.evaluation.judges.verifier import VerifierJudge


def test_verifier_judge_grades_and_compares_by_score() -> None:
    cases = [single("x" * 10), single(""), single("x" * 5), pair("xx", "x"), pair("x", "xx"), pair("x", "y")]
    with VerifierJudge().open(judge_context(Path("none"), LengthVerifier())) as judging:
        assert [j.value for j in judging(cases)] == [10, 1, 5.5, 1, 0, 0.5]


def test_verifier_judge_passes_the_turn_to_the_verifier() -> None:
    class TurnVerifier:
        def score(self, example: object, response: str, turn: int = -1) -> float:
            return turn / 2

    dialogue = question("q", "first", "second")
    cases = [Case(dialogue, 0, (("a",),)), Case(dialogue, 1, (("a", "b"),))]
    with VerifierJudge().open(judge_context(Path("none"), TurnVerifier())) as judging:
        assert [j.value for j in judging(cases)] == [1, 5.5]


def test_check_without_a_verifier_is_rejected() -> None:
    with pytest.raises(UserError, match="judge=verifier"):
        VerifierJudge().check(None)
