import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.data.builtin import Builtin
from selfcontrast.data.example import Example
from selfcontrast.data.families import FORMS
from selfcontrast.data.verifier import BuiltinVerifier, grade
from selfcontrast.errors import UserError

SPLITS = Builtin(train=160, validation=160, test=160, noise=0.15, rejected_noise=0.3, two_turn=0.5, seed=3).load()
CLEAN = SPLITS["test"] + SPLITS["validation"]
VERIFIER = BuiltinVerifier()


def reference(form: str, **want: list[str]) -> str:
    return json.dumps({"content": "", "family": form, "turns": [{"form": form, "want": want}]})


STORY = reference("writing", hero=["Tom"], thing=["lamp"], place=["river"], end=["All was lost", "Everyone cried"])
SUM = reference("math", a=["12"], op=["plus"], b=["7"], c=["19"], things=["rings"])
CODE = reference("coding", layout=["def"], op1=["+"], n1=["3"], op2=["*"], n2=["5"])
RELAY = reference(
    "roleplay", opening=["Ahoy"], name=["Tom"], thing=["lamp"], place=["river"], closing=["Arrr", "Sail on"]
)


@pytest.mark.parametrize(
    ("spec", "response", "score"),
    [
        # Four slots weigh 2 each and the form weighs 1: 9 in all.
        (STORY, "Once brave Tom found a red lamp by the river. Everyone cried.", 1),
        (STORY, "Once brave Ann found a red lamp by the river. Everyone cried.", 7 / 9),
        (STORY, "Once brave Ann found a red cup by the river. Everyone cried.", 5 / 9),
        (STORY, "Once brave Tom found a red lamp by the river. Everyone sang.", 7 / 9),
        (STORY, "Once brave Tom found a blurry lamp by the river. Everyone cried.", 8 / 9),
        (STORY, "Once brave Tmo found a red lamp by the river. Everyone cried.", 7 / 9),
        # No template matches: a slot counts if the text has its right value and no other value of this slot. The score
        # is halved.
        (STORY, "Tom and his lamp", 4 / 9 / 2),
        (STORY, "Tom, Ann and a lamp", 2 / 9 / 2),
        (STORY, "Tomcat, lamplight", 0),
        (STORY, "Once brave Tom found a red lamp by the river. Everyone cried. Really.", 8 / 9 / 2),
        # Slots weigh 2, 2, 2, 6 (the result) and 2, the form 1: 15 in all.
        (SUM, "Sure, 12 plus 7 is 19 rings.", 1),
        (SUM, "Sure, 12 plus 7 is 18 rings.", 9 / 15),
        (SUM, "Sure, 12 plus 8 is 19 rings.", 13 / 15),
        (SUM, "19", 6 / 15 / 2),
        (SUM, "18 19 20 rings", 2 / 15 / 2),
        (CODE, "def f(x):\n    return (x + 3) * 5", 1),
        (CODE, "def f(x):\n    y = x + 3\n    return y * 5", 1),
        (CODE, "f = lambda x: (x + 3) * 5", 9 / 11),
        # The variable `n` is not the argument, so no template matches. The text has two numbers and two operators, so
        # only `def` counts: half of 2 / 11.
        (CODE, "def f(x):\n    return (n + 3) * 5", 1 / 11),
        (RELAY, "Ahoy! Tom, the old lamp is by the river. Sail on!", 1),
        (RELAY, "Howdy! Tom, the old lamp is by the river. Sail on!", 9 / 11),
        (SUM, "", 0),
        (SUM, "   \n", 0),
        (SUM, "Sure, 12 plus 7 is 19 rings." + " 19" * 200, 0),
    ],
)
def test_grade_equals_hand_computed_scores(spec: str, response: str, score: float) -> None:
    assert grade(spec, response).score == pytest.approx(score)


def test_details_name_the_wrong_slot() -> None:
    example = Example(id="0", prompt=[], target="", reference=SUM)
    details = VERIFIER.details(example, "Sure, 12 plus 7 is 18 rings.")
    assert details == {"a": True, "op": True, "b": True, "c": False, "things": True, "form": True}


def test_clean_targets_score_exactly_one() -> None:
    assert {VERIFIER.score(example, example.target) for example in CLEAN} == {1.0}


@given(example=st.sampled_from(CLEAN), choice=st.integers(0, 2**32), seed=st.integers(0, 2**32))
def test_one_wrong_slot_costs_exactly_its_weight(example: Example, choice: int, seed: int) -> None:
    turn = json.loads(example.reference)["turns"][-1]
    form, rng = FORMS[turn["form"]], random.Random(seed)
    values = {slot: rng.choice(right) for slot, right in turn["want"].items()}
    slot = sorted(values)[choice % len(values)]
    values[slot] = rng.choice([value for value in form.slots[slot].pool if value not in turn["want"][slot]])
    weights = {name: form.slots[name].weight for name in values}
    response = form.render(values, rng)
    assert VERIFIER.score(example, response) == pytest.approx(1 - weights[slot] / (sum(weights.values()) + 1))
    assert [name for name, right in VERIFIER.details(example, response).items() if not right] == [slot]


@given(example=st.sampled_from(CLEAN), response=st.text())
def test_random_text_scores_below_one_half(example: Example, response: str) -> None:
    assert 0 <= VERIFIER.score(example, response) < 0.5


@given(
    example=st.sampled_from(CLEAN),
    words=st.lists(st.sampled_from([w for e in CLEAN for w in e.target.split()])),
)
def test_known_words_in_any_order_score_from_0_to_1(example: Example, words: list[str]) -> None:
    assert 0 <= VERIFIER.score(example, " ".join(words)) <= 1


@pytest.mark.parametrize("example", CLEAN[:8], ids=lambda example: example.category)
def test_naming_all_values_of_a_slot_earns_nothing(example: Example) -> None:
    turn = json.loads(example.reference)["turns"][-1]
    for slot in turn["want"].keys() - {"layout"}:
        everything = " ".join(FORMS[turn["form"]].slots[slot].pool)[:400]
        assert not VERIFIER.details(example, everything)[slot]


def test_turns_are_graded_by_their_own_specification() -> None:
    dialogues = [example for example in CLEAN if example.turns]
    for example in dialogues:
        first = example.prompt[1]["content"]
        assert VERIFIER.score(example, first, turn=0) == 1
        assert VERIFIER.score(example, example.target, turn=1) == VERIFIER.score(example, example.target) == 1
        assert VERIFIER.score(example, first, turn=1) < 1
    assert len(dialogues) > 50


@pytest.mark.parametrize("foreign", ["", "not JSON", "[]", "{}"])
def test_example_of_another_source_raises(foreign: str) -> None:
    with pytest.raises(UserError, match="data=builtin"):
        VERIFIER.score(Example(id="0", prompt=[], target="", reference=foreign), "anything")
