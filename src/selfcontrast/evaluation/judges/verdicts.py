"""Read the verdict in a judge's reply.

Only the reply is read, never the judged answers. A judge may quote an answer before it decides. So lines quoted with
`>` and blocks between ``` are ignored, and the last verdict in the remaining text is used.
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
VERDICTS = ("text", "logprob")  # how a comparison's verdict is read: as written, or weighted by probability
LOWEST, HIGHEST = 1.0, 10.0
_BLOCK = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```[^\n]*$|\Z)", re.MULTILINE | re.DOTALL)
# In "[[7]] out of [[10]]", "[[7]]/[[10]]" and "[[7]] on a scale from [[1]] to [[10]]" only [[7]] is a rating.
_SCALE = re.compile(
    r"(?:\bout\s+of|(?<=[\d\]])[\s*_]*(?:of|/))[\s*_]*\[\[[^\[\]]*\]\]"
    r"|\[\[\s*1\s*\]\][\s*_]*(?:to|through|-|–)[\s*_]*\[\[\s*10\s*\]\]",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"^[ \t]*>.*$", re.MULTILINE)


def read_verdict(reply: str, pairwise: bool, five: bool = False) -> Judgment:
    """Read `[[A]]`, `[[B]]` or `[[C]]` (neither) for two answers, `[[rating]]` from 1 to 10 for one.

    With `five`, verdicts for two answers are `[[A>>B]]`, `[[A>B]]`, `[[A=B]]`, `[[B>A]]`, `[[B>>A]]`, as in Arena-Hard.
    """
    text = _without_quotes(reply)
    if five:
        return _five(text, reply)
    verdicts: list[str] = CHOICE.findall(text) if pairwise else RATING.findall(_SCALE.sub("", text))
    if not verdicts:
        return Judgment("unparsable", None, reply)
    if pairwise:
        return Judgment("ok", OUTCOMES[verdicts[-1]], reply)
    rating = float(verdicts[-1])
    return Judgment("ok", rating, reply) if LOWEST <= rating <= HIGHEST else Judgment("out_of_range", None, reply)


def _five(text: str, reply: str) -> Judgment:
    verdicts = [(first, DEGREES[sign]) for first, sign, second in FIVE.findall(text) if first != second]
    if not verdicts:
        return Judgment("unparsable", None, reply)
    first, value = verdicts[-1]
    return Judgment("ok", value if first == "A" else 1 - value, reply)


def choice_position(reply: str) -> int | None:
    """Return the position of the letter that `read_verdict` reads in the reply; None without a verdict."""
    matches = list(CHOICE.finditer(_without_quotes(reply)))
    return matches[-1].start(1) if matches else None


def letter_tokens(token: str, index: int) -> dict[str, str]:
    """Return, for each letter of a verdict, a copy of `token` with that letter at `index`."""
    return {letter: f"{token[:index]}{letter}{token[index + 1 :]}" for letter in OUTCOMES}


def expected_outcome(log_probs: Mapping[str, float]) -> float:
    """Return the expected outcome, in [0, 1], from the letters' log-probabilities at the verdict, as AlpacaEval does.

    Probabilities are normalized over the letters. A missing letter has probability 0. If one is NaN, return NaN.
    """
    if any(math.isnan(value) for value in log_probs.values()):
        return math.nan
    highest = max(log_probs.values())
    weights = {letter: math.exp(value - highest) for letter, value in log_probs.items()}
    return sum(OUTCOMES[letter] * weight for letter, weight in weights.items()) / sum(weights.values())


def from_scores(scores: Sequence[float]) -> Judgment:
    """Make a judgment from scores: a grade from one score in [0, 1], or a comparison in which the higher score wins."""
    reply = " against ".join(f"{score:.4f}" for score in scores)
    if not all(map(math.isfinite, scores)):
        return Judgment("unparsable", None, reply)
    if len(scores) == 1:
        return Judgment("ok", LOWEST + (HIGHEST - LOWEST) * scores[0], reply)
    return Judgment("ok", 0.5 + 0.5 * float(np.sign(scores[0] - scores[1])), reply)


def _without_quotes(reply: str) -> str:
    """Blank out quotations. All other characters keep their positions."""
    for quoted in (_BLOCK, _QUOTED):
        reply = quoted.sub(lambda match: " " * len(match[0]), reply)
    return reply
