"""The families STEM and humanities: ask for two of the five facts about an invented mineral or town, then for a third.

A model can know a fact only from training. So a held-out question holds out the *pair* of facts, not a fact: each fact
occurs in training in other pairs, and in follow-ups to other pairs.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, permutations, product

from selfcontrast.data.families.dialogue import Dialogue, Turn
from selfcontrast.data.families.form import Form, Slot, Template
from selfcontrast.data.families.words import CLOSERS, OPENERS

WORLD_SEED = 7
"""The facts are the same for every seed of the data."""

WORDINGS = (
    "What is the {attributes} of {entity}?",
    "Tell me the {attributes} of {entity}.",
    "About {entity}: what is its {attributes}?",
)
FOLLOW_UPS = ("And its {attributes}?", "Now tell me its {attributes}.", "What about its {attributes}?")


@dataclass(frozen=True)
class Attribute:
    """The values of an attribute, and two clauses that state a value after the entity's name; `{}` is the value."""

    clauses: tuple[str, str]
    values: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Invented entities and their attributes; `facts[entity][attribute]` is the truth."""

    family: str
    attributes: Mapping[str, Attribute]
    facts: Mapping[str, Mapping[str, str]]

    def form_name(self, names: tuple[str, ...]) -> str:
        return f"{self.family} " + "+".join(sorted(names))

    def forms(self) -> dict[str, Form]:
        subsets = [pair for size in (1, 2) for pair in combinations(self.attributes, size)]
        return {self.form_name(names): self._form(names) for names in subsets}

    def _form(self, names: tuple[str, ...]) -> Form:
        templates = []
        for order in permutations(names):
            for clauses in product(*(self.attributes[name].clauses for name in order)):
                statement = " and ".join(
                    clause.format(f"{{{name}}}") for name, clause in zip(order, clauses, strict=True)
                )
                templates += [f"{{opener}}, {{entity}} {statement}.", f"{{entity}} {statement}. {{closer}}."]
                templates += [f"{{opener}}, {{entity}} {statement}. {{closer}}."]
        slots = {"entity": Slot(tuple(self.facts))} | {
            name: Slot(self.attributes[name].values, weight=3) for name in names
        }
        return Form(tuple(map(Template, templates)), slots, {"opener": OPENERS, "closer": CLOSERS})

    def draw(self, rng: random.Random) -> Dialogue:
        entity = rng.choice(sorted(self.facts))
        *pair, third = rng.sample(sorted(self.attributes), 3)

        def turn(wordings: tuple[str, ...], names: tuple[str, ...]) -> Turn:
            user = rng.choice(wordings).format(attributes=" and ".join(names), entity=entity)
            want = {"entity": [entity]} | {name: [self.facts[entity][name]] for name in names}
            return Turn(user, self.form_name(names), want)

        content = " ".join([self.family, entity, *sorted(pair)])
        return Dialogue(content, turn(WORDINGS, tuple(pair)), turn(FOLLOW_UPS, (third,)))


def _world(family: str, stems: str, endings: str, attributes: Mapping[str, Attribute]) -> World:
    rng = random.Random(f"{WORLD_SEED} {family}")
    names = [stem + ending for stem in stems.split() for ending in endings.split()]
    facts = {name: {key: rng.choice(attribute.values) for key, attribute in attributes.items()} for name in names}
    return World(family, attributes, facts)


MINERALS = _world(
    "stem",
    stems="Bel Cor Dra Fen Gar Hol Jor Lum Mor Nev",
    endings="ite ium ane oss",
    attributes={
        "colour": Attribute(
            ("is {}", "looks {}"), ("red", "blue", "green", "black", "white", "yellow", "pink", "grey")
        ),
        "source": Attribute(
            ("comes from {}", "is found in {}"),
            ("caves", "rivers", "deserts", "swamps", "volcanoes", "glaciers", "meteors", "lakes"),
        ),
        "use": Attribute(
            ("is used for {}", "is good for {}"),
            ("lenses", "wires", "paint", "magnets", "tiles", "medicine", "fuel", "jewels"),
        ),
        "feel": Attribute(
            ("feels {}", "is {} to the touch"),
            ("smooth", "rough", "sticky", "oily", "cold", "warm", "dusty", "sharp"),
        ),
        "weight": Attribute(
            ("weighs as much as {}", "is as heavy as {}"),
            ("lead", "cork", "wood", "iron", "chalk", "wax", "glass", "gold"),
        ),
    },
)
TOWNS = _world(
    "humanities",
    stems="Ald Brin Cas Dun Elm Fal Gren Har Kel Wyn",
    endings="burg ford ton mere",
    attributes={
        "founder": Attribute(
            ("was founded by {}", "goes back to {}"),
            ("monks", "nomads", "soldiers", "miners", "sailors", "poets", "traders", "exiles"),
        ),
        "craft": Attribute(
            ("makes {}", "is known for {}"),
            ("pottery", "carpets", "swords", "candles", "violins", "paper", "silk", "barrels"),
        ),
        "sight": Attribute(
            ("has a {}", "is proud of its {}"),
            ("temple", "library", "palace", "theatre", "fountain", "museum", "fortress", "mosaic"),
        ),
        "dish": Attribute(
            ("serves {}", "lives on {}"),
            ("soup", "bread", "cheese", "fish", "beans", "rice", "honey", "plums"),
        ),
        "age": Attribute(
            ("dates from the {} century", "is from the {} century"),
            ("third", "fifth", "sixth", "eighth", "ninth", "tenth", "twelfth", "last"),
        ),
    },
)
FORMS = MINERALS.forms() | TOWNS.forms()
