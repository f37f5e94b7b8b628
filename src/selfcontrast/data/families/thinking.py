"""Reasoning, math and coding: responses that must be worked out, not copied."""

import random

from selfcontrast.data.families.dialogue import Dialogue, Turn
from selfcontrast.data.families.form import Form, Slot, Template
from selfcontrast.data.families.words import CLOSERS, NAMES, OPENERS, THINGS, plural

# Each scale has a comparative, the superlative for the most, and the superlative for the least.
SCALES = (
    ("older", "oldest", "youngest"),
    ("taller", "tallest", "shortest"),
    ("faster", "fastest", "slowest"),
    ("stronger", "strongest", "weakest"),
    ("richer", "richest", "poorest"),
)
BECAUSE = ("because", "since", "as", "for")
ORDER = Form(
    templates=(
        Template("{opener}, {answer} is the {extreme}, {because} the order is {most}, {middle}, {least}."),
        Template("The order is {most}, {middle}, {least}, so {answer} is the {extreme}. {closer}."),
        Template("{opener}, from the top: {most}, {middle}, {least}. So the {extreme} is {answer}."),
        Template("{answer} is the {extreme}, {because} we have {most}, {middle}, {least}. {closer}."),
    ),
    slots={
        "answer": Slot(NAMES, weight=4),
        "extreme": Slot(tuple(word for scale in SCALES for word in scale[1:])),
        "most": Slot(NAMES),
        "middle": Slot(NAMES),
        "least": Slot(NAMES),
    },
    fillers={"opener": OPENERS, "because": BECAUSE, "closer": CLOSERS},
)
ORDER_WORDINGS = (
    "{most} is {more} than {middle}. {middle} is {more} than {least}. Who is the {extreme}?",
    "{middle} is {more} than {least}, and {most} is {more} than {middle}. Who is the {extreme}?",
    "Name the {extreme}: {middle} is {more} than {least} but {most} is {more} than {middle}.",
)
ORDER_FOLLOW_UPS = ("And who is the {extreme}?", "Who is the {extreme} then?", "Now name the {extreme}.")


def draw_reasoning(rng: random.Random) -> Dialogue:
    more, *extremes = rng.choice(SCALES)
    most, middle, least = rng.sample(NAMES, 3)
    order = {"most": most, "middle": middle, "least": least}
    answers = list(zip(extremes, (most, least), strict=True))
    rng.shuffle(answers)

    def turn(wordings: tuple[str, ...], extreme: str, answer: str) -> Turn:
        user = rng.choice(wordings).format(**order, more=more, extreme=extreme)
        want = {"answer": answer, "extreme": extreme, **order}
        return Turn(user, "reasoning", {name: [value] for name, value in want.items()})

    content = " ".join(["reasoning", more, most, middle, least])
    return Dialogue(content, turn(ORDER_WORDINGS, *answers[0]), turn(ORDER_FOLLOW_UPS, *answers[1]))


NUMBERS = tuple(str(number) for number in range(51))
SUM = Form(
    templates=(
        Template("{opener}, {a} {op} {b} {makes} {c} {things}."),
        Template("{opener}, there are {c} {things}, {because} {a} {op} {b} {makes} that."),
        Template("{a} {op} {b} {makes} {c} {things}. {closer}."),
        Template("{c} {things}, {because} {a} {op} {b} {makes} that. {closer}."),
    ),
    slots={
        "a": Slot(NUMBERS),
        "op": Slot(("plus", "minus", "times")),
        "b": Slot(NUMBERS),
        "c": Slot(NUMBERS, weight=6),
        "things": Slot(tuple(plural(thing) for thing in THINGS)),
    },
    fillers={
        "opener": OPENERS,
        "because": BECAUSE,
        "makes": ("makes", "gives", "is", "equals"),
        "closer": CLOSERS,
    },
)
SUM_WORDINGS = {
    "plus": (
        "{name} has {a} {things} and buys {b} more. How many {things} now?",
        "{name} owns {a} {things} and finds {b} more. What is the total?",
        "How many {things} does {name} have, if {b} join the first {a}?",
    ),
    "minus": (
        "{name} has {a} {things} and loses {b}. How many {things} are left?",
        "{name} owns {a} {things} and sells {b} of them. What is left?",
        "How many {things} does {name} keep, if {b} of {a} are gone?",
    ),
    "times": (
        "{name} has {a} boxes with {b} {things} each. How many {things} in all?",
        "{name} buys {b} {things} on each of {a} days. What is the total?",
        "How many {things} has {name}, if each of {a} bags holds {b}?",
    ),
}
STEPS = {
    ("times", 2): ("Now double it.", "What is twice that?"),
    ("plus", 10): ("Now add 10 to it.", "And with 10 more?"),
    ("minus", 1): ("Now take 1 away.", "And with 1 less?"),
}


def calculate(a: int, op: str, b: int) -> int:
    return {"plus": a + b, "minus": a - b, "times": a * b}[op]


def draw_math(rng: random.Random) -> Dialogue:
    op = rng.choice(sorted(SUM_WORDINGS))
    a, b = (rng.randint(2, 5 if op == "times" else 9) for _ in range(2))
    if op == "minus":
        a, b = a + b, b
    things = plural(rng.choice(THINGS))

    def want(a: int, op: str, b: int) -> dict[str, list[str]]:
        values = {"a": a, "op": op, "b": b, "c": calculate(a, op, b), "things": things}
        return {name: [str(value)] for name, value in values.items()}

    step, step_wordings = rng.choice(list(STEPS.items()))
    user = rng.choice(SUM_WORDINGS[op]).format(name=rng.choice(NAMES), a=a, b=b, things=things)
    first = Turn(user, "math", want(a, op, b))
    follow_up = Turn(rng.choice(step_wordings), "math", want(calculate(a, op, b), *step))
    # 3 + 5 and 5 + 3 are one content. There are few sums, so a model can learn them by heart; only the stories are new.
    return Dialogue(f"math {min(a, b)} {op} {max(a, b)} {things}", first, follow_up)


OPERATIONS = {"+": ("adds", "add"), "-": ("subtracts", "subtract"), "*": ("multiplies by", "multiply by")}
FACTORS = tuple(str(number) for number in range(2, 13))
CODE = Form(
    templates=(
        Template("def {f}({x}):\n    return ({x} {op1} {n1}) {op2} {n2}", {"layout": "def"}),
        Template("def {f}({x}):\n    {y} = {x} {op1} {n1}\n    return {y} {op2} {n2}", {"layout": "def"}),
        Template("def {f}({x}):\n    {x} = {x} {op1} {n1}\n    return {x} {op2} {n2}", {"layout": "def"}),
        Template("{f} = lambda {x}: ({x} {op1} {n1}) {op2} {n2}", {"layout": "lambda"}),
        Template("{f} = (lambda {x}: ({x} {op1} {n1}) {op2} {n2})", {"layout": "lambda"}),
    ),
    slots={
        "layout": Slot(("def", "lambda")),
        "op1": Slot(tuple(OPERATIONS)),
        "n1": Slot(FACTORS),
        "op2": Slot(tuple(OPERATIONS)),
        "n2": Slot(FACTORS),
    },
    fillers={
        "f": ("f", "g", "run", "calc", "step", "work", "solve", "apply"),
        "x": ("x", "n", "a", "k", "v", "num", "arg", "value"),
        "y": ("y", "t", "out", "tmp"),
    },
)
CODE_WORDINGS = (
    "Write a function with {layout} that {does1} {n1} and then {does2} {n2}.",
    "Use {layout}: a function that first {does1} {n1}, then {does2} {n2}.",
    "Code with {layout}: {do1} {n1}, then {do2} {n2}.",
)
CODE_FOLLOW_UPS = ("Now write it with {layout}.", "And with {layout}?", "Use {layout} instead.")


def draw_coding(rng: random.Random) -> Dialogue:
    spec = {"op1": rng.choice(tuple(OPERATIONS)), "n1": rng.choice(FACTORS)}
    spec |= {"op2": rng.choice(tuple(OPERATIONS)), "n2": rng.choice(FACTORS)}
    (does1, do1), (does2, do2) = OPERATIONS[spec["op1"]], OPERATIONS[spec["op2"]]
    verbs = {"does1": does1, "do1": do1, "does2": does2, "do2": do2}
    first, second = rng.sample(("def", "lambda"), 2)

    def turn(wordings: tuple[str, ...], layout: str) -> Turn:
        user = rng.choice(wordings).format(**spec, **verbs, layout=layout)
        return Turn(user, "coding", {name: [value] for name, value in {"layout": layout, **spec}.items()})

    content = " ".join(["coding", *spec.values()])
    return Dialogue(content, turn(CODE_WORDINGS, first), turn(CODE_FOLLOW_UPS, second))


FORMS = {"reasoning": ORDER, "math": SUM, "coding": CODE}
