"""Grade a response to the built-in data exactly, from the specification in `Example.reference`.

The score is the weighted fraction of right slots. If one of the form's templates matches the response, the match gives
the value of each slot, and the additional slot `form` is right if the fillers are known. In any other response, `form`
is wrong, a slot is right if the text contains a right value and no wrong value of that slot (so naming all values earns
nothing), and the score is halved.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfcontrast.data.example import Example
from selfcontrast.data.families import FORMS, Form, Want
from selfcontrast.errors import UserError

FORM = "form"
FORM_WEIGHT = 1
LOOSE_CREDIT = 0.5
# No right response is longer than 200 characters. A text with more than MAX_CHARACTERS scores 0.
MAX_CHARACTERS = 400


@dataclass(frozen=True)
class Grade:
    """A score in [0, 1]. `slots` maps each slot, and `form`, to True if it is right."""

    slots: Mapping[str, bool]
    score: float


def grade(reference: str, response: str, turn: int = -1) -> Grade:
    """Grade `response` as the answer to played turn `turn` of the dialogue that `reference` specifies.

    The grade depends on the specification and the response alone, not on earlier answers.
    """
    spec = _turns(reference)[turn]
    form, want = FORMS[spec["form"]], spec["want"]
    text = response.strip()
    if len(text) > MAX_CHARACTERS:
        return _grade(form, dict.fromkeys(want, False) | {FORM: False})
    matches = [_grade(form, _read(form, want, values)) for values in form.read(text)]
    return max(matches, key=lambda match: match.score) if matches else _loose(form, want, text)


@dataclass(frozen=True)
class BuiltinVerifier:
    """Grade responses to the built-in data. Raise `UserError` for an example of another source."""

    def check(self, example: Example) -> None:
        _turns(example.reference)

    def score(self, example: Example, response: str, turn: int = -1) -> float:
        """Return a score in [0, 1]; 1 if every slot is right."""
        return grade(example.reference, response, turn).score

    def details(self, example: Example, response: str, turn: int = -1) -> dict[str, bool]:
        """Return True for each right slot, False for each wrong one."""
        return dict(grade(example.reference, response, turn).slots)


def _turns(reference: str) -> list[dict[str, Any]]:
    try:
        turns: list[dict[str, Any]] = json.loads(reference)["turns"]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            "the verifier grades the built-in data only, and this example's reference is not from it. "
            "Use data=builtin, or verifier=none."
        ) from None
    return turns


def _read(form: Form, want: Want, values: Mapping[str, str]) -> dict[str, bool]:
    fillers_known = all(values[hole] in pool for hole, pool in form.fillers.items() if hole in values)
    return {slot: values[slot] in right for slot, right in want.items()} | {FORM: fillers_known}


def _loose(form: Form, want: Want, text: str) -> Grade:
    slots = {}
    for slot, right in want.items():
        named = {v for v in form.slots[slot].pool if re.search(rf"(?<!\w){re.escape(v)}(?!\w)", text)}
        slots[slot] = bool(named) and named <= set(right)
    return _grade(form, slots | {FORM: False}, LOOSE_CREDIT)


def _grade(form: Form, slots: Mapping[str, bool], credit: float = 1.0) -> Grade:
    weights = {slot: FORM_WEIGHT if slot == FORM else form.slots[slot].weight for slot in slots}
    right = sum(weights[slot] for slot, is_right in slots.items() if is_right)
    return Grade(slots, credit * right / sum(weights.values()))
