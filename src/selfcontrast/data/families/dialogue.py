"""Define the dialogues that a family draws: one or two questions, each with the specification of its right answers."""

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

    `content` names the subject of the question, independent of its wording, word order and follow-up. No two splits
    share a content.
    """

    content: str
    first: Turn
    follow_up: Turn


Draw = Callable[[random.Random], Dialogue]
