"""The verdict in a judge's reply.

Only the reply is read, never the answers that it is about. A judge may quote an answer before it decides, so lines
quoted with `>` and blocks between ``` are left out, and of what remains the last verdict counts.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from selfcontrast.evaluation.judges.judgment import Judgment

RATING = re.compile(r"\[\[\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*\]\]")
CHOICE = re.compile(r"\[\[\s*([ABC])\s*\]\]")
FIVE = re.compile(r"\[\[\s*([AB])\s*(>>|>|=|<<|<)\s*([AB])\s*\]\]")
DEGREES = {">>": 1.0, ">": 0.75, "=": 0.5, "<": 0.25, "<<": 0.0}
OUTCOMES = {"A": 1.0, "B": 0.0, "C": 0.5}
VERDICTS = ("text", "logprob")  # how a comparison's verdict is read: as it is said, or weighed by its probability
LOWEST, HIGHEST = 1.0, 10.0
_BLOCK = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```[^\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_SCALE = (
    re.compile(  # of "[[7]] out of [[10]]", "[[7]]/[[10]]", "[[7]] on a scale from [[1]] to [[10]]" one is a rating
        r"(?:\bout\s+of|(?<=[\d\]])[\s*_]*(?:of|/))[\s*_]*\[\[[^\[\]]*\]\]"
        r"|\[\[\s*1\s*\]\][\s*_]*(?:to|through|-|–)[\s*_]*\[\[\s*10\s*\]\]",
        re.IGNORECASE,
    )
)
_QUOTED = re.compile(r"^[ \t]*>.*$", re.MULTILINE)


def read_verdict(reply: str, pairwise: bool, five: bool = False) -> Judgment:
    """`[[A]]`, `[[B]]` or `[[C]]` (neither) of two answers; `[[rating]]` from 1 to 10 of one.

    With `five`, of two answers `[[A>>B]]`, `[[A>B]]`, `[[A=B]]`, `[[B>A]]` or `[[B>>A]]`, as Arena-Hard has them.
    """
    words = _own_words(reply)
    if five:
        return _five(words, reply)
    found: list[str] = CHOICE.findall(words) if pairwise else RATING.findall(_SCALE.sub("", words))
    if not found:
        return Judgment("unparsable", None, reply)
    if pairwise:
        return Judgment("ok", OUTCOMES[found[-1]], reply)
    rating = float(found[-1])
    return Judgment("ok", rating, reply) if LOWEST <= rating <= HIGHEST else Judgment("out_of_range", None, reply)


def _five(words: str, reply: str) -> Judgment:
    found = [(first, DEGREES[sign]) for first, sign, second in FIVE.findall(words) if first != second]
    if not found:
        return Judgment("unparsable", None, reply)
    first, value = found[-1]
    return Judgment("ok", value if first == "A" else 1 - value, reply)


def choice_place(reply: str) -> int | None:
    """Where in the reply the letter of its verdict stands, which `read_verdict` reads; None where there is none."""
    found = list(CHOICE.finditer(_own_words(reply)))
    return found[-1].start(1) if found else None


def alternatives(token: str, at: int) -> dict[str, str]:
    """By letter the token that would have said it, for a token that has the verdict's letter at the place `at`."""
    return {letter: f"{token[:at]}{letter}{token[at + 1 :]}" for letter in OUTCOMES}


def weighed(log_probs: Mapping[str, float]) -> float:
    """The mean outcome, in [0, 1], of the letters' log-probabilities where the verdict was said (as AlpacaEval's).

    What the other tokens have is left out. A letter that is not given has none. NaN where a log-probability is.
    """
    if any(math.isnan(value) for value in log_probs.values()):
        return math.nan
    highest = max(log_probs.values())
    chances = {letter: math.exp(value - highest) for letter, value in log_probs.items()}
    return sum(OUTCOMES[letter] * chance for letter, chance in chances.items()) / sum(chances.values())


def from_scores(scores: Sequence[float]) -> Judgment:
    """Of a judge that computes numbers: of one score in [0, 1] a grade, of two scores which is higher."""
    said = " against ".join(f"{score:.4f}" for score in scores)
    if not all(map(math.isfinite, scores)):
        return Judgment("unparsable", None, said)
    if len(scores) == 1:
        return Judgment("ok", LOWEST + (HIGHEST - LOWEST) * scores[0], said)
    return Judgment("ok", 0.5 + 0.5 * float(np.sign(scores[0] - scores[1])), said)


def _own_words(reply: str) -> str:
    """Without what it quotes, every character at its place."""
    for quoted in (_BLOCK, _QUOTED):
        reply = quoted.sub(lambda found: " " * len(found[0]), reply)
    return reply
