"""The vocabulary that families share. It is small, so the model sees every word hundreds of times."""

NAMES = ("Tom", "Ann", "Sue", "Ben", "Mia", "Leo", "Eva", "Max", "Lily", "Jack", "Nora", "Hugo")
THINGS = ("lamp", "coin", "book", "ring", "hat", "map", "key", "cup", "drum", "rope", "boat", "bell")
PLACES = ("market", "river", "barn", "castle", "forest", "bridge", "garden", "harbour")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

OPENERS = ("Sure", "Well", "Let us see", "Of course", "Gladly", "Right", "Here you go", "Good question")
CLOSERS = (
    "That is all", "I hope this helps", "I am sure", "Ask me more",
    "It is clear", "Happy to help", "There you have it", "No doubt",
)  # fmt: skip


def plural(thing: str) -> str:
    return thing + "s"
