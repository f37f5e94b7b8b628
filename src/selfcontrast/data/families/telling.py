"""Writing and roleplay: short texts that must contain given words in a given tone."""

import random

from selfcontrast.data.families.dialogue import Dialogue, Turn
from selfcontrast.data.families.form import Form, Slot, Template
from selfcontrast.data.families.words import NAMES, PLACES, THINGS

ENDS = {
    "happy": ("All was well", "Everyone sang", "Joy filled the town", "They laughed all night"),
    "sad": ("All was lost", "Everyone cried", "Grief filled the town", "They wept all night"),
}
STORY = Form(
    templates=(
        Template("{when} {mood} {hero} {verb} a {look} {thing} by the {place}. {end}."),
        Template("{when} a {look} {thing} lay by the {place}, and {mood} {hero} {verb} it. {end}."),
        Template("By the {place} {mood} {hero} {verb} a {look} {thing}. {end}."),
    ),
    slots={
        "hero": Slot(NAMES),
        "thing": Slot(THINGS),
        "place": Slot(PLACES),
        "end": Slot(sum(ENDS.values(), ())),
    },
    fillers={
        "when": ("Once", "Long ago", "One day", "Last year", "At dawn", "Yesterday"),
        "mood": ("brave", "little", "clever", "quiet", "young", "kind"),
        "verb": ("found", "saw", "took", "hid", "lost", "liked"),
        "look": ("red", "tiny", "big", "strange", "golden", "broken"),
    },
)
STORY_WORDINGS = (
    "Write a story about {hero}, a {thing} and a {place}. Give it a {tone} end.",
    "Tell a {tone} story: {hero} and a {thing} by the {place}.",
    "I want a short story with a {tone} end about {hero}, the {place} and a {thing}.",
)
STORY_FOLLOW_UPS = (
    "Rewrite it with a {tone} end.",
    "Now give it a {tone} end.",
    "Tell it again, but {tone}.",
)


def draw_writing(rng: random.Random) -> Dialogue:
    spec = {"hero": rng.choice(NAMES), "thing": rng.choice(THINGS), "place": rng.choice(PLACES)}
    first, second = rng.sample(sorted(ENDS), 2)

    def turn(wordings: tuple[str, ...], tone: str) -> Turn:
        user = rng.choice(wordings).format(**spec, tone=tone)
        return Turn(user, "writing", {**{name: [value] for name, value in spec.items()}, "end": ENDS[tone]})

    content = " ".join(["writing", *spec.values()])
    return Dialogue(content, turn(STORY_WORDINGS, first), turn(STORY_FOLLOW_UPS, second))


PERSONAS = {
    "pirate": (("Ahoy", "Avast", "Shiver me timbers"), ("Arrr", "Yo ho ho", "Sail on")),
    "knight": (("Hail", "By my sword", "Hear me"), ("For the king", "On my honour", "To battle")),
    "robot": (
        ("Beep boop", "Signal received", "Scan complete"),
        ("End of message", "Power down", "Task done"),
    ),
    "wizard": (("Abracadabra", "By my staff", "Behold"), ("So say the stars", "Magic endures", "Beware")),
    "cowboy": (("Howdy", "Well partner", "Whoa there"), ("Yeehaw", "Giddy up", "Ride safe")),
    "queen": (("We greet you", "By our crown", "Bow now"), ("Long may we reign", "Kneel", "Leave us")),
}
RELAY = Form(
    templates=(
        Template("{opening}! {name}, the {look} {thing} {verb} by the {place}. {closing}!"),
        Template("{opening}, {name}! By the {place} {verb} the {look} {thing}. {closing}!"),
        Template("{opening}! The {look} {thing} {verb} by the {place}, {name}. {closing}!"),
    ),
    slots={
        "opening": Slot(sum((opening for opening, _ in PERSONAS.values()), ())),
        "name": Slot(NAMES),
        "thing": Slot(THINGS),
        "place": Slot(PLACES),
        "closing": Slot(sum((closing for _, closing in PERSONAS.values()), ())),
    },
    fillers={"verb": ("is", "waits", "lies", "rests"), "look": ("old", "lost", "dear", "fine")},
)
RELAY_WORDINGS = (
    "Speak like a {persona} and tell {name} that the {thing} is by the {place}.",
    "You are a {persona}. Let {name} know: the {thing} is by the {place}.",
    "Tell {name} as a {persona} would: by the {place} is the {thing}.",
)
RELAY_FOLLOW_UPS = ("Now say it like a {persona}.", "And as a {persona}?", "Say it again as a {persona}.")


def draw_roleplay(rng: random.Random) -> Dialogue:
    spec = {"name": rng.choice(NAMES), "thing": rng.choice(THINGS), "place": rng.choice(PLACES)}
    first, second = rng.sample(sorted(PERSONAS), 2)

    def turn(wordings: tuple[str, ...], persona: str) -> Turn:
        user = rng.choice(wordings).format(**spec, persona=persona)
        opening, closing = PERSONAS[persona]
        details = {name: [value] for name, value in spec.items()}
        return Turn(user, "roleplay", {"opening": opening, **details, "closing": closing})

    content = " ".join(["roleplay", *spec.values()])
    return Dialogue(content, turn(RELAY_WORDINGS, first), turn(RELAY_FOLLOW_UPS, second))


FORMS = {"writing": STORY, "roleplay": RELAY}
