"""Verifiers that grade a response against an example's `answer`, which comes from a column of the data.

Each is a file of `conf/verifier`. They look at the text alone: no model, and nothing that a response could persuade.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from selfcontrast.data.example import Example, Source, Split, Verifier
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.errors import UserError, printable

MARK = "####"  # GSM8K's, before the final number
MINUS = "-\u2212"  # as typed, and as typeset
NUMBER = re.compile(
    rf"(?P<sign>[{MINUS}]?[$€£]?[{MINUS}]?)"  # -$5, $-5
    # 1,200.50 or .5; a dot alone ends a sentence
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
SHOWN = 60  # characters of an answer in an error


@dataclass(frozen=True)
class FinalNumber:
    """1 where the final number of a response is the answer's, compared as exact decimals; else 0.

    The final number is the first one after "####"; without that mark, the last one of the text. Signs of money and
    percent, commas between thousands and a full stop after it do not count: "$1,200.50." is 1200.5. Fractions and words
    are no numbers. The rule is GSM8K's (arXiv 2110.14168) with the last number as what most graders fall back on.
    """

    def check(self, example: Example) -> None:
        if final_number(_given(example)) is None:
            raise UserError(f"its answer {_shown(example)} has no number")

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        found = final_number(response)
        return float(found is not None and found == final_number(example.answer))


@dataclass(frozen=True)
class ExactMatch:
    """1 where a response is the answer and nothing else; white space at both ends, and how much of it, does not count.

    Attributes:
        ignore_case: whether "paris" is "Paris".
    """

    ignore_case: bool

    def check(self, example: Example) -> None:
        _given(example)

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        return float(_plain(response, self.ignore_case) == _plain(example.answer, self.ignore_case))


@dataclass(frozen=True)
class Contains:
    """1 where the answer stands in a response as whole words: "5" is not in "15". A list of all answers earns it too.

    Attributes:
        ignore_case: whether "paris" is "Paris".
    """

    ignore_case: bool

    def check(self, example: Example) -> None:
        _given(example)

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        answer = re.escape(_plain(example.answer, self.ignore_case))
        return float(re.search(rf"(?<!\w){answer}(?!\w)", _plain(response, self.ignore_case)) is not None)


@dataclass(frozen=True)
class NoVerifier:
    """Nothing grades: responses are compared by their similarity to the target, a proxy."""

    def check(self, example: Example) -> None:
        """Any example will do."""

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        raise AssertionError("a job without a verifier asks for no score")


def final_number(text: str) -> Decimal | None:
    """The final number of a text by the rule of `FinalNumber`; None where there is none."""
    before, mark, after = text.partition(MARK)
    found = list(_numbers(after if mark else before))
    return (found[0] if mark else found[-1]) if found else None


def _numbers(text: str) -> Iterator[Decimal]:
    """Each number of a text. A digit of a word is none (H2O), and the minus of a range or difference no sign (3-5)."""
    for match in NUMBER.finditer(text):
        sign, digits, before = match["sign"], match["digits"], text[max(0, match.start() - 1) : match.start()]
        minus = any(character in sign for character in MINUS)
        if not sign and (before.isalpha() or before == "_" or (before.isdigit() and digits[0] == ".")):
            continue
        negative = minus and not (before.isalnum() or before in tuple(")]%"))
        yield Decimal(("-" if negative else "") + digits.replace(",", ""))


def check_examples(verifier: Verifier, source: Source, splits: Mapping[Split, Sequence[Example]]) -> None:
    """Raise `UserError` for the first example that the verifier cannot grade, named with its place."""
    for split, examples in splits.items():
        for example in examples:
            try:
                verifier.check(example)
            except UserError as error:
                place = f" ({source.place_of(example.id)})" if isinstance(source, Jsonl) else ""
                raise UserError(
                    f"verifier={type(verifier).__name__}: it cannot grade the row {example.id}{place} of the split "
                    f"{split}: {error}"
                ) from error


def _given(example: Example) -> str:
    if not example.answer.strip():
        raise UserError(
            "it has no answer. Name the column that holds it with data.answer_column=…, or use verifier=none"
        )
    return example.answer


def _plain(text: str, ignore_case: bool) -> str:
    words = " ".join(text.split())
    return words.casefold() if ignore_case else words


def _shown(example: Example) -> str:
    text = printable(example.answer)
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
