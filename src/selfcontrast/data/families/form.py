"""Define forms: templates that generate responses, and that parse a response into slots.

A form has templates with holes. A hole is either a *slot*, whose value the prompt decides and the verifier grades, or a
*filler*, which is free within a closed set. Drawing and parsing share the templates, so they always agree.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from string import Formatter

Want = Mapping[str, Sequence[str]]
"""The right values of each slot; any one of them is right."""

WORD = r"[^\s.,;:!?()]+"


@dataclass(frozen=True)
class Slot:
    """A graded hole: all its values (noise draws from them), and its weight in the score."""

    pool: tuple[str, ...]
    weight: int = 2


@dataclass(frozen=True, eq=False)
class Template:
    """Text with holes as `{name}`; repeated names get the same value.

    `fixed` maps the slots that the template itself decides, such as the layout of a function, to their values.
    """

    text: str
    fixed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Form:
    """The wordings of one kind of response."""

    templates: tuple[Template, ...]
    slots: Mapping[str, Slot]
    fillers: Mapping[str, tuple[str, ...]]

    def pool(self, hole: str) -> tuple[str, ...]:
        return self.slots[hole].pool if hole in self.slots else self.fillers[hole]

    def render(self, values: Mapping[str, str], rng: random.Random) -> str:
        """Put the slots' `values` into a random template that agrees with them, with random fillers."""
        matching = [t for t in self.templates if all(values[s] == v for s, v in t.fixed.items())]
        fillers = {hole: rng.choice(pool) for hole, pool in self.fillers.items()}
        return rng.choice(matching).text.format(**fillers, **values)

    def read(self, response: str) -> Iterator[dict[str, str]]:
        """Yield the value of each hole, for each template that matches the whole response."""
        for template in self.templates:
            if match := _pattern(self, template).fullmatch(response):
                yield {**match.groupdict(), **template.fixed}


def sample_target(form: Form, want: Want, rng: random.Random, noise: float, spoilt: str | None = None) -> str:
    """Draw a response. Each slot is wrong with probability `noise`; the slot `spoilt` is always wrong."""
    values = {}
    for name, right in want.items():
        wrong = [value for value in form.slots[name].pool if value not in right]
        values[name] = rng.choice(wrong if rng.random() < noise or name == spoilt else right)
    return form.render(values, rng)


@cache
def _pattern(form: Form, template: Template) -> re.Pattern[str]:
    """Return a pattern that accepts any word in a hole, so a wrong word costs its own slot and no other."""
    parts, holes = [], set[str]()
    for literal, hole, _, _ in Formatter().parse(template.text):
        parts.append(re.escape(literal))
        if hole:
            parts.append(f"(?P={hole})" if hole in holes else f"(?P<{hole}>{_hole(form.pool(hole))})")
            holes.add(hole)
    return re.compile("".join(parts))


def _hole(pool: Sequence[str]) -> str:
    spaces = max(value.count(" ") for value in pool)
    pool_values = "|".join(re.escape(value) for value in sorted(pool, key=len, reverse=True))
    return f"{pool_values}|{WORD}(?: {WORD}){{0,{spaces}}}"
