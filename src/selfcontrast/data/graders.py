"""Verifiers that grade a response against an example's `answer`, a column of the data.

Each verifier has a file in `conf/verifier`. They use no model, so no response can persuade them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from selfcontrast.data.example import Example, Source, Split, Verifier
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.errors import UserError, printable

MARK = "####"  # precedes the final number in GSM8K
MINUS = "-\u2212"  # hyphen and minus sign
NUMBER = re.compile(
    rf"(?P<sign>[{MINUS}]?[$€£]?[{MINUS}]?)"  # -$5, $-5
    # 1,200.50 or .5; a dot alone ends a sentence
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
EXCERPT = 60  # characters of an answer in an error


@dataclass(frozen=True)
class FinalNumber:
    """Score 1 if the response's final number equals the answer's, as exact decimals; else 0.

    The final number is the first one after "####" or, without that mark, the last one of the text. Currency signs,
    percent signs, thousands separators and a full stop are ignored: "$1,200.50." is 1200.5. Fractions and number words
    are not numbers. The mark is GSM8K's (arXiv 2110.14168). Most graders use the last number if the mark is missing.
    """

    def check(self, example: Example) -> None:
        _check_answer(example)
        if final_number(example.answer) is None:
            raise UserError(f"its answer {_excerpt(example)} has no number. Use another verifier or column.")

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        number = final_number(response)
        return float(number is not None and number == final_number(example.answer))


@dataclass(frozen=True)
class _TextGrader:
    ignore_case: bool

    def check(self, example: Example) -> None:
        _check_answer(example)

    def _normalize(self, text: str) -> str:
        words = " ".join(text.split())
        return words.casefold() if self.ignore_case else words


@dataclass(frozen=True)
class ExactMatch(_TextGrader):
    """Score 1 if the response equals the answer, else 0.

    A run of white space counts as one space. White space at the ends is ignored.

    Attributes:
        ignore_case: accept "paris" for "Paris".
    """

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        return float(self._normalize(response) == self._normalize(example.answer))


@dataclass(frozen=True)
class Contains(_TextGrader):
    """Score 1 if the response contains the answer as whole words ("15" does not contain "5"), else 0.

    A response that lists all possible answers also scores 1.

    Attributes:
        ignore_case: accept "paris" for "Paris".
    """

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        answer = re.escape(self._normalize(example.answer))
        return float(re.search(rf"(?<!\w){answer}(?!\w)", self._normalize(response)) is not None)


@dataclass(frozen=True)
class NoVerifier:
    """Grade nothing. Responses are then compared by their similarity to the target, a proxy for quality."""

    def check(self, example: Example) -> None:
        """Accept any example."""

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        raise AssertionError("without a verifier there are no scores")


def final_number(text: str) -> Decimal | None:
    """Return the final number of a text by the rule of `FinalNumber`; None without one."""
    before, mark, after = text.partition(MARK)
    numbers = list(_numbers(after if mark else before))
    return (numbers[0] if mark else numbers[-1]) if numbers else None


def _numbers(text: str) -> Iterator[Decimal]:
    """Yield the numbers of a text.

    A digit in a word is not a number (H2O). The dash of a range or difference is not a sign (3-5).
    """
    for match in NUMBER.finditer(text):
        sign, digits, before = match["sign"], match["digits"], text[max(0, match.start() - 1) : match.start()]
        minus = any(character in sign for character in MINUS)
        if not sign and (before.isalpha() or before == "_" or (before.isdigit() and digits[0] == ".")):
            continue
        negative = minus and not (before.isalnum() or before in tuple(")]%"))
        yield Decimal(("-" if negative else "") + digits.replace(",", ""))


def check_examples(verifier: Verifier, source: Source, splits: Mapping[Split, Sequence[Example]]) -> None:
    """Raise `UserError` for the first example that the verifier cannot grade, with its location."""
    for split, examples in splits.items():
        for example in examples:
            try:
                verifier.check(example)
            except UserError as error:
                location = f" ({source.location_of(example.id)})" if isinstance(source, Jsonl) else ""
                raise UserError(
                    f"verifier={type(verifier).__name__} cannot grade the row {example.id}{location} of the split "
                    f"{split}: {error}"
                ) from error


def _check_answer(example: Example) -> None:
    if not example.answer.strip():
        raise UserError("it has no answer. Set data.answer_column to the column of answers, or use verifier=none.")


def _excerpt(example: Example) -> str:
    text = printable(example.answer)
    return repr(text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…")
