"""What a family draws: one or two questions with the specification of their right answers."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from selfcontrast.data.families.form import Want


@dataclass(frozen=True)
class Turn:
    """A user's message, the name of the form that answers it, and the right values of its slots."""

    user: str
    form: str
    want: Want


@dataclass(frozen=True)
class Dialogue:
    """A question and its follow-up.

    `content` names what is asked about, whatever the wording, the order and the follow-up: splits are kept
    apart by it.
    """

    content: str
    first: Turn
    follow_up: Turn


Draw = Callable[[random.Random], Dialogue]
