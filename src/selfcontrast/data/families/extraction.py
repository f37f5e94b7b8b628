"""The family extraction: ask for two of the five facts in a note, then for a third."""

import random
from collections.abc import Sequence
from itertools import combinations, permutations

from selfcontrast.data.families.dialogue import Dialogue, Turn
from selfcontrast.data.families.form import Form, Slot, Template
from selfcontrast.data.families.words import CLOSERS, DAYS, NAMES, OPENERS, PLACES, THINGS, plural

POOLS = {
    "person": NAMES,
    "day": DAYS,
    "place": PLACES,
    "thing": tuple(plural(thing) for thing in THINGS),
    "count": tuple(str(count) for count in range(2, 13)),
}
NOTES = (
    "{person} {verb} {count} {thing} at the {place} on {day}.",
    "On {day} {person} {verb} {count} {thing} at the {place}.",
    "At the {place}, {person} {verb} {count} {thing} on {day}.",
)
VERBS = ("sold", "bought", "lost", "found", "made")
WORDINGS = ("Note: {note} Give the {fields}.", "{note} Name the {fields}.", "List the {fields}: {note}")
FOLLOW_UPS = ("And the {fields}?", "Now give the {fields}.", "What of the {fields}?")


def listing(parts: Sequence[str]) -> str:
    return " and ".join(parts)


def _form(fields: tuple[str, ...]) -> Form:
    templates = []
    for order in permutations(fields):
        sentence = listing([f"the {field} is {{{field}}}" for field in order])
        listed = ", ".join(f"{field} {{{field}}}" for field in order)
        bare = listing([f"{{{field}}} for the {field}" for field in order])
        ends = (f"{sentence}.", f"{listed}. {{closer}}.", f"{bare}.")
        templates += [Template(f"{{opener}}, {end}") for end in ends]
    fillers = {"opener": OPENERS, "closer": CLOSERS}
    return Form(tuple(templates), {field: Slot(POOLS[field]) for field in fields}, fillers)


def _name(fields: Sequence[str]) -> str:
    return "extraction " + "+".join(sorted(fields))


FORMS = {_name(fields): _form(fields) for size in (1, 2) for fields in combinations(sorted(POOLS), size)}


def draw_extraction(rng: random.Random) -> Dialogue:
    spec = {field: rng.choice(pool) for field, pool in POOLS.items()}
    note = rng.choice(NOTES).format(**spec, verb=rng.choice(VERBS))
    fields = rng.sample(sorted(POOLS), len(POOLS))

    def turn(wordings: tuple[str, ...], names: list[str]) -> Turn:
        user = rng.choice(wordings).format(note=note, fields=listing(names))
        return Turn(user, _name(names), {field: [spec[field]] for field in names})

    content = " ".join(["extraction", *spec.values()])
    return Dialogue(content, turn(WORDINGS, fields[:2]), turn(FOLLOW_UPS, fields[2:3]))
