"""The verdict in a judge's reply.

Only the reply is read, never the answers that it is about. A judge may quote an answer before it decides, so lines
quoted with `>` and blocks between ``` are left out, and of what remains the last verdict counts.
"""

import re
from collections.abc import Sequence

import numpy as np

from selfcontrast.evaluation.judges.judgment import Judgment

RATING = re.compile(r"\[\[\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*\]\]")
CHOICE = re.compile(r"\[\[\s*([ABC])\s*\]\]")
OUTCOMES = {"A": 1.0, "B": 0.0, "C": 0.5}
LOWEST, HIGHEST = 1.0, 10.0
_BLOCK = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```[^\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"^[ \t]*>.*$", re.MULTILINE)


def read_verdict(reply: str, pairwise: bool) -> Judgment:
    """`[[A]]`, `[[B]]` or `[[C]]` (neither) of two answers; `[[rating]]` from 1 to 10 of one."""
    own = _QUOTED.sub("", _BLOCK.sub("", reply))
    found: list[str] = (CHOICE if pairwise else RATING).findall(own)
    if not found:
        return Judgment("unparsable", None, reply)
    if pairwise:
        return Judgment("ok", OUTCOMES[found[-1]], reply)
    rating = float(found[-1])
    return Judgment("ok", rating, reply) if LOWEST <= rating <= HIGHEST else Judgment("out_of_range", None, reply)


def from_scores(scores: Sequence[float]) -> Judgment:
    """Of a judge that computes numbers: of one score in [0, 1] a grade, of two scores which is higher."""
    said = " against ".join(f"{score:.4f}" for score in scores)
    if len(scores) == 1:
        return Judgment("ok", LOWEST + (HIGHEST - LOWEST) * scores[0], said)
    return Judgment("ok", 0.5 + 0.5 * float(np.sign(scores[0] - scores[1])), said)
