"""Test verifiers that read a column of the data, with hand-computed cases and properties."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from selfcontrast.config import build, configure
from selfcontrast.data.builtin import Builtin
from selfcontrast.data.example import Example
from selfcontrast.data.graders import Contains, ExactMatch, FinalNumber, NoVerifier, check_examples, final_number
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.data.verifier import BuiltinVerifier
from selfcontrast.errors import UserError
from shared import shared_data
from test_config import composed


def example(answer: str) -> Example:
    return Example("e", [{"role": "user", "content": "?"}], "target", answer=answer)


# --- the final number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 48/2 = 24 left, so 72.", "72"),
        ("#### 72", "72"),
        ("It is 5.\n#### 72 or 80", "72"),  # the first number after the mark
        ("#### 1\n#### 2", "1"),
        ("The answer is $1,200.50.", "1200.5"),
        ("1,234,567 in all", "1234567"),
        ("25%", "25"),
        ("0.50", ".5"),
        ("a share of .75", "0.75"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("it fell to -$5", "-5"),
        ("it fell to $-5", "-5"),
        ("(-3)", "-3"),
        ("x=-7", "-7"),
        ("pages 3-5", "5"),  # a range
        ("10 - 5", "5"),
        ("(2)-5", "5"),
        ("**42**", "42"),
        (r"\boxed{42}", "42"),
        ("the 20th, 5km away", "5"),
        ("3,4,5", "5"),  # a list, not a number with thousands separators
        ("12,34", "34"),
        ("5 molecules of H2O", "5"),
        ("version 1.5.2", "1.5"),
        ("72\n", "72"),
    ],
)
def test_final_number_of_text_equals_number_read_by_hand(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)
    assert FinalNumber().score(example(number), text) == 1.0
    assert FinalNumber().score(example("#### " + number), text) == 1.0
    assert FinalNumber().score(example(str(Decimal(number) + 1)), text) == 0.0


@pytest.mark.parametrize("text", ["", "seventy-two", "H2O", ". . .", "$", "-", "of 5: #### none", "5 ####"])
def test_text_without_a_final_number_scores_0(text: str) -> None:
    """A number before "####" is not the answer."""
    assert final_number(text) is None
    assert FinalNumber().score(example("5"), text) == 0.0


decimals = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12)
prose = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(decimals, st.sampled_from(["", "$", "€"]), st.sampled_from(["", ".", "%", " dollars.", "\n"]), prose)
def test_final_number_reads_every_spelling_of_a_number(number: Decimal, money: str, end: str, before: str) -> None:
    sign, digits = ("-", f"{-number:,}") if number < 0 else ("", f"{number:,}")
    for written in (f"{number}", f"{sign}{money}{digits}", f"{money}{sign}{digits}"):
        assert final_number(f"{before.replace('#', '')} so {written}{end}") == number
        assert final_number(f"{before.replace('#', '')}#### {written}{end}") == number


@given(prose, prose)
def test_every_grader_scores_any_text_0_or_1(text: str, answer: str) -> None:
    for verifier in (FinalNumber(), ExactMatch(True), ExactMatch(False), Contains(True), Contains(False)):
        assert verifier.score(example(answer or "x"), text) in (0.0, 1.0)


@given(decimals, decimals)
def test_final_number_scores_1_only_if_equal(number: Decimal, other: Decimal) -> None:
    assert FinalNumber().score(example(str(number)), f"It is {other}.") == float(number == other)


# --- texts


@pytest.mark.parametrize(
    ("response", "exact", "contains"),
    [
        ("Paris", 1, 1),
        ("  Paris\n", 1, 1),
        ("paris", 0, 0),
        ("It is Paris.", 0, 1),
        ("Parisian", 0, 0),
        ("", 0, 0),
    ],
)
def test_text_graders_distinguish_case(response: str, exact: int, contains: int) -> None:
    assert ExactMatch(ignore_case=False).score(example("Paris"), response) == exact
    assert Contains(ignore_case=False).score(example("Paris"), response) == contains


def test_text_graders_ignore_case_and_kind_of_white_space() -> None:
    assert ExactMatch(ignore_case=True).score(example("New York"), "NEW\n york") == 1
    assert Contains(ignore_case=True).score(example("New York"), "it is new\nyork!") == 1
    assert Contains(ignore_case=True).score(example("5"), "15 or 51") == 0
    assert Contains(ignore_case=True).score(example("C++ (or so)"), "I like c++ (or so).") == 1  # no pattern, but text


# --- checks before any compute


def jsonl_source(file: Path, answers: list[object]) -> Jsonl:
    file.write_text(
        "".join(json.dumps({"prompt": f"{i}?", "target": "t", "gold": a}) + "\n" for i, a in enumerate(answers))
    )
    return Jsonl(str(file), 0.1, 0.1, None, "gold", "required")


def test_answer_column_fills_answer(tmp_path: Path) -> None:
    source = jsonl_source(tmp_path / "d.jsonl", ["1", 2, 3.5, "four 4", "5", "6", "7", "#### 8"])
    splits = source.load()
    answers = {e.prompt[0]["content"]: e.answer for examples in splits.values() for e in examples}
    assert [answers[f"{i}?"] for i in range(8)] == ["1", "2", "3.5", "four 4", "5", "6", "7", "#### 8"]
    check_examples(FinalNumber(), source, splits)
    other = Jsonl(source.path, 0.1, 0.1, None, None, "required")
    assert {e.answer for examples in other.load().values() for e in examples} == {""}
    assert other.fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ("answer", "verifier", "reason"),
    [
        (None, FinalNumber(), r"data\.answer_column"),
        (" ", ExactMatch(True), r"data\.answer_column"),
        ("", Contains(True), r"data\.answer_column"),
        ("none", FinalNumber(), "answer 'none' has no number"),
    ],
)
def test_check_examples_names_the_line_of_an_ungradable_row(
    answer: object, verifier: FinalNumber | ExactMatch | Contains, reason: str, tmp_path: Path
) -> None:
    source = jsonl_source(tmp_path / "d.jsonl", ["1"] * 5 + [answer] + ["1"] * 4)
    splits = source.load()
    with pytest.raises(UserError, match=rf"cannot grade the row \w+ \(line 6 of .*d\.jsonl\).*{reason}"):
        check_examples(verifier, source, splits)
    check_examples(NoVerifier(), source, splits)


def test_answer_of_another_type_raises(tmp_path: Path) -> None:
    for answer in (True, [1], {"a": 1}):
        with pytest.raises(UserError, match=r"line 3: 'gold' must be text"):
            jsonl_source(tmp_path / "d.jsonl", ["1", "2", answer, *"345678"]).load()


def test_builtin_verifier_refuses_other_data(tmp_path: Path) -> None:
    data = Builtin(16, 8, 8, 0.1, 0.1, 0.2, 1)
    check_examples(BuiltinVerifier(), data, data.load())
    source = jsonl_source(tmp_path / "d.jsonl", ["1"] * 10)
    with pytest.raises(UserError, match=r"BuiltinVerifier cannot grade the row .*verifier=none"):
        check_examples(BuiltinVerifier(), source, source.load())


def config_of(file: Path, *overrides: str) -> DictConfig:
    return composed(
        "data=jsonl", f"data.path={file}", "encoder=lexical", "tracking=none", f"output={file.parent}", *overrides
    )


def test_configure_refuses_rows_without_answers(tmp_path: Path) -> None:
    source = jsonl_source(tmp_path / "d.jsonl", [str(i) for i in range(9)])
    graded = ("verifier=final_number", "data.answer_column=gold")
    assert configure(config_of(Path(source.path), *graded)).grader == FinalNumber()
    assert configure(config_of(Path(source.path))).grader is None
    with pytest.raises(UserError, match=r"line \d of .*data\.answer_column"):
        configure(config_of(Path(source.path), "verifier=final_number"))
    with pytest.raises(UserError, match=r"LowestScored needs scores"):
        configure(config_of(Path(source.path), "filter=oracle"))
    assert configure(config_of(Path(source.path), "filter=oracle", *graded)).grader == FinalNumber()


@pytest.mark.parametrize(
    ("overrides", "verifier"),
    [
        ((), "BuiltinVerifier"),
        (("data=jsonl",), "NoVerifier"),
        (("data=hh_rlhf",), "NoVerifier"),
        (("data=self_contrast_release",), "NoVerifier"),
        (("data=jsonl", "verifier=contains"), "Contains"),
        (("verifier=none",), "NoVerifier"),
        (("+experiment=gsm8k",), "FinalNumber"),
        (("+experiment=gsm8k_laptop", "verifier=exact_match"), "ExactMatch"),
    ],
)
def test_verifier_defaults_to_that_of_the_data_and_can_be_overridden(overrides: tuple[str, ...], verifier: str) -> None:
    assert type(build(composed(*overrides).verifier, "verifier")).__name__ == verifier


# --- the real GSM8K


@pytest.mark.parametrize("split", ["train", "test"])
def test_gsm8k_solutions_are_right_only_if_their_numbers_are_equal(split: str) -> None:
    """Compare with the number after "####" without its commas, as OpenAI's code for GSM8K reads it."""
    solutions = [json.loads(line)["answer"] for line in shared_data("gsm8k", f"{split}.jsonl").read_text().splitlines()]
    numbers = [Decimal(solution.rsplit("#### ", 1)[1].replace(",", "")) for solution in solutions]
    for i, solution in enumerate(solutions):
        previous = i - 1
        assert FinalNumber().score(example(solution), solution) == 1.0
        assert FinalNumber().score(example(solution), f"The answer is ${numbers[i]:,}.") == 1.0
        assert FinalNumber().score(example(solution), solutions[previous]) == float(numbers[i] == numbers[previous])
